"""The end of a process within a training, for tests of resumption."""

from __future__ import annotations

import itertools

import torch.nn.functional as F

from hitdet_nni.nas import sample_evaluation
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.training import classification


class KilledError(Exception):
    """What stands for the end of the process."""


def kill_in_step(context, step):
    """Let the classification training end in its `step`-th step from now, before the loss."""
    real, count = F.cross_entropy, 0

    def counting(*arguments, **keywords):
        nonlocal count
        count += 1
        if count > step:
            raise KilledError
        return real(*arguments, **keywords)

    context.setattr(classification.F, "cross_entropy", counting)


def kill_in_sample(context, number):
    """Let the evaluation of sampled architectures end at its `number`-th loss from now."""
    calls = itertools.count(1)

    def killed(detector, batch):
        if next(calls) == number:
            raise KilledError
        return detection_loss(detector, batch)

    context.setattr(sample_evaluation, "detection_loss", killed)
