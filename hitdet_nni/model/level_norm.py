"""Batch normalisation of layers that every level of a pyramid shares."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hitdet_nni.errors import InputError
from hitdet_nni.model.replacement import replace_modules


class LevelBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with one scale and shift for all levels, but each level's own statistics.

    Levels differ in mean and variance, so one running average would fit none of them when the detector is used. In
    training a map with one value a channel, which has no variance, is normalised by the running averages. Without a
    momentum these are the means over a level's batches since they were reset.

    Args:
        num_features: Channels.
        levels: Levels of the pyramid.
        eps: As of torch's.
        momentum: As of torch's.

    Attributes:
        level: Index of the level that the next call is given.
        batches: Batches of each level that the running averages have taken in since they were reset.

    Shape:
        ``[N, num_features, H, W]`` to the same.

    Source:
        Ghiasi et al., NAS-FPN, CVPR 2019 (batch normalisation is not shared over levels); sharing scale and shift
        keeps the parameters of the operators as they are counted.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, levels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.running_mean = torch.zeros(levels, num_features)
        self.running_var = torch.ones(levels, num_features)
        self.level = 0

    def reset_running_stats(self) -> None:
        """Forget the running averages of all levels, and how many batches they are of."""
        super().reset_running_stats()
        self.batches: Counter[int] = Counter()

    def averaging_factor(self) -> float:
        """Return the weight of the level's next batch in its running averages."""
        return 1 / (self.batches[self.level] + 1) if self.momentum is None else self.momentum

    def count_batch(self) -> None:
        """Count a batch of the level that its running averages have taken in."""
        self.batches[self.level] += 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map of level ``self.level``."""
        mean, variance = self.running_mean[self.level], self.running_var[self.level]
        training = self.training and x.numel() > x.shape[1]
        factor = self.averaging_factor()
        if training:
            self.count_batch()
        return F.batch_norm(x, mean, variance, self.weight, self.bias, training, factor, self.eps)


def separate_statistics(module: nn.Module, levels: int) -> None:
    """Give every batch normalisation inside ``module`` statistics for each of ``levels`` levels, in place.

    Raises:
        InputError: If one has no scale and shift, or no running averages.
    """

    def separated(part: nn.Module) -> nn.Module:
        if not isinstance(part, nn.BatchNorm2d):
            return part
        if not (part.affine and part.track_running_stats):
            problem = f"{part} has no scale and shift, or no running averages"
            raise InputError(problem, source="batch normalisation", allowed="both, in the head of a RetinaNet")
        return LevelBatchNorm2d(part.num_features, levels, part.eps, part.momentum)

    replace_modules(module, separated)


def select_level(module: nn.Module, level: int) -> None:
    """Tell every :class:`LevelBatchNorm2d` inside ``module`` which level comes next."""
    for part in module.modules():
        if isinstance(part, LevelBatchNorm2d):
            part.level = level
