"""Which mixtures share the statistics of their batch normalisations with other processes (``batch_norm: synced``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.joint_statistics import Joint, gathered
from hitdet_nni.engine.synced_batch_norm import SyncedBatchNorm2d
from hitdet_nni.errors import InputError


def are_joint(norms: Sequence[nn.BatchNorm2d]) -> bool:
    """Whether the batch statistics of some layers are now those of all processes.

    Raises:
        InputError: If only some are.
    """
    if distributed.world_size() == 1:
        return False
    training = [isinstance(norm, SyncedBatchNorm2d) for norm in norms if norm.training]
    if any(training) and not all(training):
        raise InputError(
            "a mixed layer has batch normalisations over all processes and over one",
            key="batch_norm",
            allowed="one kind, or supernet.activations: all or checkpoint",
        )
    return any(training)


@dataclass(frozen=True)
class JointPixels:
    """The pixels of a mixture's maps in all processes that share its statistics.

    Attributes:
        inputs: Those of the input.
        outputs: Those of the output.
        least: The least that one process has of the input.
        most: The most.
    """

    inputs: Joint
    outputs: Joint
    least: int
    most: int

    @classmethod
    def of(cls, inputs: int, outputs: int, kind: torch.dtype, device: torch.device) -> JointPixels:
        """Return them, given this process's, by one exchange; ``kind`` is the type of statistics."""
        counts, counts_out = gathered(*torch.tensor([inputs, outputs], dtype=kind, device=device))
        least, most = torch.stack(torch.aminmax(counts)).tolist()
        return cls(Joint(counts), Joint(counts_out), int(least), int(most))
