"""Batch normalisation by the statistics of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

_STATS_MODES = ("default", "N")


class _Sum(torch.autograd.Function):
    """Sum of a tensor over the processes of a group; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SyncBatchNorm(nn.Module):
    """Batch normalisation whose statistics are those of all processes, ``MMSyncBN`` in the registry; on any device.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Share of the batch in the running statistics, 0..1; None: the mean of all batches.
        affine: Whether there are a scale and a shift to be learned.
        track_running_stats: Whether running statistics are kept; without, batch statistics are used in evaluation too.
        group: The processes, a group of torch.distributed; None: all.
        stats_mode: ``"default"``: the mean of the processes' statistics; ``"N"``: weighted by the images of each.

    Shape:
        (N, C, ...) to the same; with ``"N"`` N may be 0 in some processes.

    Raises:
        ValueError: For another ``stats_mode``.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        group: Any = None,
        stats_mode: str = "default",
    ) -> None:
        super().__init__()
        if stats_mode not in _STATS_MODES:
            raise ValueError(f"stats_mode={stats_mode!r}; allowed: {', '.join(_STATS_MODES)}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.group = group
        self.stats_mode = stats_mode
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_features)) if affine else None)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)
        self.reset_parameters()

    @property
    def group_size(self) -> int:
        """Number of processes; 1 where none are connected."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0 and variance 1."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Reset the running statistics, and draw the scale from 0..1 as mmcv does (torch's is 1)."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.uniform_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of the batch, in evaluation by the running ones.

        Raises:
            ValueError: If the input has no channels.
        """
        if input.dim() < 2:
            raise ValueError(f"input {tuple(input.shape)}; allowed: (N, {self.num_features}, ...)")
        if not self.training and self.track_running_stats:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values = input.to(torch.promote_types(input.dtype, torch.float32))  # single precision at least
        wide = (-1, *[1] * (input.dim() - 2))  # of channels (C,) beside (N, C, ...)
        images = values.new_tensor([len(input)])
        # A process's share of the statistics: by mmcv's default one without images has the same as any other.
        share = images if self.stats_mode == "N" else torch.ones_like(images)
        mean, total, images = self._sum(torch.cat([share * _mean(values), share, images])).tensor_split([-2, -1])
        mean = mean / total.clamp(min=1)
        centred = values - mean.view(wide)
        variance = self._sum(share * _mean(centred.square())) / total.clamp(min=1)
        if self.training:
            count = input[:, 0].numel() * self.group_size
            self._track(mean, variance * (count / (count - 1) if count > 1 else 1), images)
        output = centred * torch.rsqrt(variance + self.eps).view(wide)
        if self.weight is not None and self.bias is not None:
            output = output * self.weight.view(wide) + self.bias.view(wide)
        return output.to(input.dtype)

    def _sum(self, x: Tensor) -> Tensor:
        if self.group_size == 1:
            return x
        total: Tensor = _Sum.apply(x, self.group)
        return total

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, images: Tensor) -> None:
        """Update the running statistics, unless no process has an image."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        weight = (momentum * images.clamp(max=1)).to(self.running_mean)
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(variance.to(self.running_var), weight)


def _mean(values: Tensor) -> Tensor:
    """Return the mean of each channel of (N, C, ...); zeros where there are no images."""
    return values.sum(dim=[0, *range(2, values.dim())]) / max(values[:, 0].numel(), 1)
