"""Batch normalisation over the batch of all processes, or by running statistics that stay as they are."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.model.level_norm import LevelBatchNorm2d

BatchNormMode = Literal["local", "synced", "frozen"]


class _Sum(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the pictures of all processes, on CPU as on GPU.

    ``torch.nn.SyncBatchNorm`` counts every process alike only on GPUs; this one needs nothing but sums over processes.

    Shape:
        ``[N, C, H, W]`` to the same; N may differ from process to process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` by the mean and the variance of all processes' inputs."""
        if not self.training or distributed.processes() == 1:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = _Sum.apply(values.new_tensor([values.numel() / values.shape[1]]))
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result: Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _Frozen(nn.Module):
    """Never in training mode, so that running statistics are used and kept; scale and shift still learn."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """Batch normalisation by its running statistics."""


class FrozenLevelBatchNorm2d(_Frozen, LevelBatchNorm2d):
    """Batch normalisation by the running statistics of each level."""


_CLASSES: dict[BatchNormMode, dict[type[nn.Module], type[nn.Module]]] = {
    "local": {},
    "synced": {nn.BatchNorm2d: SyncedBatchNorm2d},
    "frozen": {nn.BatchNorm2d: FrozenBatchNorm2d, LevelBatchNorm2d: FrozenLevelBatchNorm2d},
}


def apply_batch_norm(module: nn.Module, mode: BatchNormMode) -> None:
    """Make every batch normalisation inside ``module`` take its statistics as ``mode`` says, in place.

    The layers only change their class: parameters, buffers, state-dict keys and references to them stay.

    Args:
        module: A detector, a supernet or a classifier.
        mode: ``"local"``: of this process's batch; ``"synced"``: of all processes'; ``"frozen"``: the running ones.

    Raises:
        InputError: If the statistics are to be synced of layers that keep some for each level of a pyramid.
    """
    classes = _CLASSES[mode]
    for part in module.modules():
        if mode == "synced" and isinstance(part, LevelBatchNorm2d):
            raise InputError(
                "got 'synced': a RetinaNet's towers keep statistics for each level",
                key="batch_norm",
                allowed=("local", "frozen"),
            )
        if type(part) in classes:
            part.__class__ = classes[type(part)]
            part.train(part.training)
