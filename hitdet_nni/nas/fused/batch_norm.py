"""Batch normalisation taken apart: statistics, scale and shift, gradient, and the running averages.

Statistics have single precision at least, whatever the type of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hitdet_nni.engine.joint_statistics import Joint, channel_moments
from hitdet_nni.engine.synced_batch_norm import FrozenBatchNorm2d, FrozenLevelBatchNorm2d, SyncedBatchNorm2d
from hitdet_nni.errors import InputError
from hitdet_nni.kernels.layout import in_type
from hitdet_nni.model.level_norm import LevelBatchNorm2d
from hitdet_nni.nas.fused.joint import are_joint

SUPPORTED = (nn.BatchNorm2d, LevelBatchNorm2d, FrozenBatchNorm2d, FrozenLevelBatchNorm2d, SyncedBatchNorm2d)
"""Kinds of batch normalisation whose arithmetic this module knows; no others are taken for one of them."""


def check_supported(norm: nn.Module) -> nn.BatchNorm2d:
    """Return the module, typed.

    Raises:
        InputError: If it is of another kind, or has no scale and shift.
    """
    if type(norm) not in SUPPORTED or not isinstance(norm, nn.BatchNorm2d) or not norm.affine:
        raise InputError(f"the fused mixed layer cannot compute {norm}", allowed="affine BatchNorm2d")
    return norm


def uses_batch(norm: nn.BatchNorm2d, pixels: int) -> bool:
    """Whether a module normalises by the statistics of its batch rather than by the running ones.

    Args:
        norm: The module.
        pixels: Values a channel.

    Raises:
        ValueError: If the batch has one value a channel, which has no variance.
    """
    if isinstance(norm, LevelBatchNorm2d):
        return norm.training and pixels > 1
    use_batch_stats = norm.training or norm.running_mean is None
    if use_batch_stats and pixels == 1 and not are_joint([norm]):
        raise ValueError("batch normalisation needs more than one value a channel in training")
    return use_batch_stats


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance, ``[C]`` each; those of its current level where a module has levels.

    Raises:
        ValueError: If it keeps none.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError(f"{norm} has no running statistics")
    if isinstance(norm, LevelBatchNorm2d):
        return mean[norm.level], variance[norm.level]
    return mean, variance


@dataclass(frozen=True)
class Statistics:
    """What a map is normalised by.

    Attributes:
        mean: ``[C]``.
        variance: Biased, ``[C]``.
        inverse_deviation: ``1 / sqrt(variance + eps)``, ``[C]``.
        use_batch_stats: Whether both depend on the map, so that gradients flow through them.
        eps: Added to the variance.
        joint: The pixels of all processes, where the batch is theirs together.
    """

    mean: Tensor
    variance: Tensor
    inverse_deviation: Tensor
    use_batch_stats: bool
    eps: float
    joint: Joint | None = None

    @classmethod
    def of(
        cls,
        mean: Tensor,
        variance: Tensor,
        use_batch_stats: bool,
        eps: float,
        joint: Joint | None = None,
        inverse: Tensor | None = None,
    ) -> Statistics:
        """Return the statistics of a mean and a biased variance, ``[C]`` each.

        ``inverse`` is ``1 / sqrt(variance + eps)``, ``[C]``, where it is known.
        """
        if inverse is None:
            inverse = (variance + eps).rsqrt()
        return cls(mean, variance, inverse, use_batch_stats, eps, joint)


def _map_of(matrix: Tensor) -> Tensor:
    """Return a matrix ``[P, C]`` as one channels-last map, which ATen's batch normalisation wants."""
    return matrix.view(1, matrix.shape[0], 1, matrix.shape[1]).permute(0, 3, 1, 2)  # [P, C] -> [1, C, P, 1]


def batch_moments(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each column of ``[P, C]``."""
    return channel_moments(_map_of(matrix))


ColumnMoments = tuple[Tensor, Tensor, Tensor]
"""Mean, biased variance and ``1 / sqrt(variance + eps)`` of the columns of a matrix, ``[C]`` each."""


def column_moments(
    matrix: Tensor, known: ColumnMoments | None, joint: Joint | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return mean, variance and, if it is known, inverse deviation of the columns of ``[P, C]``, ``[C]`` each.

    Args:
        matrix: The matrix.
        known: Its moments, where they are known.
        joint: The pixels of all processes, where the batch is theirs together.
    """
    mean, variance, inverse = (*batch_moments(matrix), None) if known is None else known
    if joint is not None:
        return (*joint.moments(mean, variance), None)
    return mean, variance, inverse


def normalize(matrix: Tensor, statistics: Statistics, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute ``scale * (matrix - mean) / sqrt(variance + eps) + shift``, by column of ``[P, C]``, in its type."""
    if matrix.device.type == "cpu" and matrix.dtype == scale.dtype:
        slope = scale * statistics.inverse_deviation
        return torch.addcmul(shift - slope * statistics.mean, matrix, slope)
    images = F.batch_norm(
        _map_of(matrix), statistics.mean, statistics.variance, scale, shift, False, 0.0, statistics.eps
    )
    return images.permute(0, 2, 3, 1).reshape(matrix.shape)  # [1, C, P, 1] -> [P, C]


def normalize_gradient(
    grad: Tensor, matrix: Tensor, statistics: Statistics, scale: Tensor, *, of_input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of :func:`normalize`.

    Args:
        grad: Gradient by the result, ``[P, C]``.
        matrix: What was normalised.
        statistics: What it was normalised by.
        scale: The scale of the normalisation.
        of_input: Whether the first gradient is wanted; without, it is empty.

    Returns:
        Gradients by the matrix (through its statistics too, where they are the batch's), by the scale and by the shift.
    """
    grad_map, grad_scale, grad_shift = torch.ops.aten.native_batch_norm_backward(
        _map_of(grad),
        _map_of(matrix),
        scale,
        statistics.mean,
        statistics.variance,
        statistics.mean,
        statistics.inverse_deviation,
        statistics.use_batch_stats and statistics.joint is None,
        statistics.eps,
        [of_input, True, True],
    )
    if not of_input:
        return grad.new_empty(0), grad_scale, grad_shift
    if statistics.use_batch_stats and statistics.joint is not None:
        mean, inverse = statistics.mean, statistics.inverse_deviation
        statistics.joint.through_statistics_(
            grad_map, _map_of(matrix), mean, scale * inverse, inverse, grad_scale, grad_shift
        )
    grad_matrix = grad_map.permute(0, 2, 3, 1).reshape(grad.shape)  # [1, C, P, 1] -> [P, C]
    return grad_matrix, grad_scale, grad_shift


class RunningUpdates:
    """The changes of running averages that one forward pass brings, applied at its end in few calls."""

    def __init__(self) -> None:
        self._changes: dict[tuple[float, float], tuple[list[Tensor], list[Tensor]]] = {}
        self._counted: dict[int, nn.BatchNorm2d] = {}

    def add(self, norm: nn.BatchNorm2d, channels: slice, mean: Tensor, variance: Tensor, pixels: int | Tensor) -> None:
        """Note the batch statistics of some channels of a module.

        Args:
            norm: The module; nothing happens where it is not in training or keeps no averages.
            channels: Which of its channels.
            mean: Their means, ``[C]``.
            variance: Their biased variances, ``[C]``.
            pixels: Values a channel; a scalar tensor where several processes have them.
        """
        if not norm.training or norm.running_mean is None:
            return
        self._counted[id(norm)] = norm
        momentum = _momentum(norm)
        if isinstance(pixels, Tensor):
            variance, pixels = variance * (pixels / (pixels - 1)), 2**62
        factors = (1.0, pixels / (pixels - 1))  # the running variance is the unbiased one
        for average, value, factor in zip(running_statistics(norm), (mean, variance), factors, strict=True):
            averages, values = self._changes.setdefault((momentum, factor), ([], []))
            averages.append(average if value.shape == average.shape else average[channels])
            values.append(in_type(value, average.dtype))

    def apply(self) -> None:
        """Change the running averages and count the batches."""
        for (momentum, factor), (averages, values) in self._changes.items():
            torch._foreach_mul_(averages, 1 - momentum)
            torch._foreach_add_(averages, values, alpha=momentum * factor)
        counters = []
        for norm in self._counted.values():
            if isinstance(norm, LevelBatchNorm2d):
                norm.count_batch()
            elif norm.num_batches_tracked is not None:
                counters.append(norm.num_batches_tracked)
        if counters:
            torch._foreach_add_(counters, 1)


def _momentum(norm: nn.BatchNorm2d) -> float:
    if isinstance(norm, LevelBatchNorm2d):
        return norm.averaging_factor()
    if norm.momentum is not None:
        return norm.momentum
    if norm.num_batches_tracked is None:
        return 0.0
    return 1.0 / (float(norm.num_batches_tracked) + 1.0)
