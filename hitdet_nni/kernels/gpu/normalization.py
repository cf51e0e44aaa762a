"""Batch normalisation with the ReLU behind it, and the gradient of both, of matrices ``[P, C]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from hitdet_nni.kernels.gpu.launch import COLUMN_BLOCKS, accumulation_type, alignment, choose_block, start, triton_type
from hitdet_nni.kernels.gpu.programs import normalization as programs


def normalize_relu(y: Tensor, mean: Tensor, inverse: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute ``relu(scale (y - mean) inverse + shift)``.

    Args:
        y: ``[P, C]``, contiguous.
        mean: ``[C]``, in the type of sums, as all that follow.
        inverse: ``1 / sqrt(variance + eps)``, ``[C]``.
        scale: ``[C]``.
        shift: ``[C]``.
    """
    positions, channels = y.shape
    block = choose_block("columns", 1, 1, y.element_size(), False)
    unit = alignment(channels)
    out = torch.empty_like(y)
    start(
        programs.normalize_relu, (triton.cdiv(channels, block.channels) * triton.cdiv(positions, block.pixels),),
        y, mean, inverse, scale, shift, out, positions, channels // unit,
        UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(accumulation_type(y.dtype)),
        num_warps=block.warps,
    )  # fmt: skip
    return out


def normalize_relu_gradient_(
    grad: Tensor,
    y: Tensor,
    mean: Tensor,
    inverse: Tensor,
    scale: Tensor,
    shift: Tensor,
    weighted_scale: Tensor,
    *,
    use_batch_stats: bool,
    joint_means: Callable[..., list[Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of :func:`normalize_relu`; the one by ``y`` takes the place of ``grad``.

    Args:
        grad: Gradient by the result, ``[P, C]``, contiguous; changed.
        y: What was normalised.
        mean: As it was normalised.
        inverse: As it was normalised.
        scale: As it was normalised.
        shift: As it was normalised.
        weighted_scale: ``scale``, or that times the weight of what is behind, which the gradient by ``y`` is to have.
        use_batch_stats: Whether mean and variance are those of ``y``.
        joint_means: Where other processes share them, means over all pixels from sums over those of this one.

    Returns:
        Gradients by scale and shift, ``[C]`` each, without that weight.
    """
    positions, channels = y.shape
    kind = accumulation_type(y.dtype)
    block = choose_block("columns", 1, 1, y.element_size(), False)
    unit = alignment(channels)
    tiles = triton.cdiv(positions, block.pixels)
    number = min(tiles, COLUMN_BLOCKS)
    parts = torch.empty(2, number, channels, dtype=kind, device=y.device)
    across = triton.cdiv(channels, block.channels)
    start(
        programs.sums, (across, number),
        grad, y, mean, inverse, scale, shift, parts, positions, channels // unit, tiles,
        UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    sums = parts.sum(1)
    through, divisor = sums, positions
    if use_batch_stats and joint_means is not None:
        (through,), divisor = joint_means(sums), 1
    start(
        programs.gradient, (across * tiles,),
        grad, y, mean, inverse, scale, shift, weighted_scale, through, positions, divisor, channels // unit,
        UNIT=unit, BY_BATCH=use_batch_stats, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind),
        num_warps=block.warps,
    )  # fmt: skip
    return sums[0], sums[1]
