"""Batch normalisation over the batch of all processes, or by running statistics that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hitdet_nni.engine import distributed
from hitdet_nni.engine.joint_statistics import Joint, channel_moments
from hitdet_nni.errors import InputError
from hitdet_nni.model.level_norm import LevelBatchNorm2d
from hitdet_nni.model.replacement import replace_modules, share_tensors

BatchNormMode = Literal["local", "synced", "frozen"]


class _Normalization(torch.autograd.Function):
    """Batch normalisation by joint statistics; returns these too: mean, biased variance, each process's pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            joint, mean, variance = Joint.of_maps(x.numel() // x.shape[1], *channel_moments(x))
            # ATen divides by the number of pixels, even of running statistics, where this process may have none.
            y = F.batch_norm(x, mean, variance, scale, shift, False, 0.0, eps) if x.numel() else x.clone()
        ctx.joint, ctx.eps = joint, eps
        ctx.save_for_backward(x, scale, mean, variance)
        ctx.mark_non_differentiable(mean, variance, joint.counts)
        return y, mean, variance, joint.counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, variance = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        of_x = ctx.needs_input_grad[0]
        with torch.autocast(grad.device.type, enabled=False):
            if x.numel():
                grad_x, grad_scale, grad_shift = torch.ops.aten.native_batch_norm_backward(
                    grad, x, scale, mean, variance, mean, inverse, False, ctx.eps, [of_x, True, True]
                )
            else:
                grad_x, grad_scale, grad_shift = grad.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
            if of_x:
                ctx.joint.through_statistics_(grad_x, x, mean, scale * inverse, inverse, grad_scale, grad_shift)
        return grad_x if of_x else None, grad_scale, grad_shift, None


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the images of all processes, on CPU as on GPU.

    ``torch.nn.SyncBatchNorm`` counts every process alike only on GPUs. Each pass exchanges once, and nothing but the
    input is kept for the backward pass.

    Shape:
        ``[N, C, H, W]`` to the same; N may differ from process to process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` by the mean and the variance of all processes' inputs."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        y: Tensor
        y, mean, variance, counts = _Normalization.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, counts.sum())
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        weight = momentum * (count > 0).to(mean.dtype)  # no pixels anywhere say nothing
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), weight)


def shares_statistics(module: nn.Module) -> bool:
    """Whether a step of ``module`` exchanges batch normalisation's statistics with other processes."""
    return distributed.world_size() > 1 and any(isinstance(part, SyncedBatchNorm2d) for part in module.modules())


class _Frozen(nn.Module):
    """Never in training mode, so that running statistics are used and kept; scale and shift still learn."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """Batch normalisation by its running statistics."""


class FrozenLevelBatchNorm2d(_Frozen, LevelBatchNorm2d):
    """Batch normalisation by the running statistics of each level."""


_CLASSES: dict[BatchNormMode, dict[type[nn.Module], type[nn.BatchNorm2d]]] = {
    "local": {nn.SyncBatchNorm: nn.BatchNorm2d},
    "synced": {nn.BatchNorm2d: SyncedBatchNorm2d, nn.SyncBatchNorm: SyncedBatchNorm2d},
    "frozen": {
        nn.BatchNorm2d: FrozenBatchNorm2d,
        nn.SyncBatchNorm: FrozenBatchNorm2d,
        LevelBatchNorm2d: FrozenLevelBatchNorm2d,
    },
}


def apply_batch_norm(module: nn.Module, mode: BatchNormMode) -> None:
    """Make every batch normalisation inside ``module`` take its statistics as ``mode`` says.

    Another layer takes the place of each, of torch's ``SyncBatchNorm`` too, which some baselines have; parameters,
    buffers and the keys of the state dict stay.

    Args:
        module: A detector, a supernet or a classifier.
        mode: ``"local"``: of this process's batch; ``"synced"``: of all processes'; ``"frozen"``: the running ones.

    Raises:
        InputError: If the statistics are to be synced of layers that keep some for each level of a pyramid.
    """
    if mode == "synced" and any(isinstance(part, LevelBatchNorm2d) for part in module.modules()):
        raise InputError(
            "got 'synced': a RetinaNet's towers keep statistics for each level",
            key="batch_norm",
            allowed=("local", "frozen"),
        )
    replace_modules(module, partial(_converted, _CLASSES[mode]))


def _converted(classes: Mapping[type[nn.Module], type[nn.BatchNorm2d]], module: nn.Module) -> nn.Module:
    """Return a batch normalisation of the class that stands in for the module's, if there is one."""
    kind = classes.get(type(module))
    if kind is None or not isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        return module
    if isinstance(module, LevelBatchNorm2d):
        levels = FrozenLevelBatchNorm2d(module.num_features, len(module.running_mean))
        levels.level = module.level
        made: nn.BatchNorm2d = levels
    else:
        made = kind(module.num_features, affine=module.affine, track_running_stats=module.track_running_stats)
    made.eps, made.momentum = module.eps, module.momentum
    share_tensors(module, made)
    return made
