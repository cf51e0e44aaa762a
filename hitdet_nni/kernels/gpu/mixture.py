"""The weighted sum of candidates behind their last normalisations, and its gradient, for several candidates at once.

A candidate's projection ``m_i``, ``[P, C]``, enters the sum as ``slope_i (m_i - mean_i)`` and a constant a channel; all
that its gradient needs of a pixel is the gradient by the sum and ``m_i``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from hitdet_nni.kernels.gpu.launch import accumulation_type, alignment, choose_block, start, triton_type
from hitdet_nni.kernels.gpu.programs import mixture as programs


def add_weighted_(total: Tensor, matrices: Tensor, mean: Tensor, inverse: Tensor, weighted_scales: Tensor) -> None:
    """Add ``sum_i weighted_scales_i inverse_i (matrices_i - mean_i)`` to ``total``.

    Args:
        total: ``[P, C]`` in the type of sums; changed.
        matrices: ``[n, P, C]``, contiguous.
        mean: Means that they are normalised by, ``[n, C]`` in the type of sums, as both that follow.
        inverse: ``1 / sqrt(variance + eps)``, ``[n, C]``.
        weighted_scales: Weight of the candidate times scale, ``[n, C]``.
    """
    number, positions, channels = matrices.shape
    block = choose_block("mixture", 1, 1, matrices.element_size(), False)
    unit = alignment(channels)
    start(
        programs.add_weighted, (triton.cdiv(channels, block.channels) * triton.cdiv(positions, block.pixels),),
        total, matrices, mean, inverse, weighted_scales, positions, channels // unit, number,
        UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(total.dtype),
        num_warps=block.warps,
    )  # fmt: skip


def last_gradient(
    grad: Tensor,
    matrices: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weighted_scales: Tensor,
    use_batch_stats: Tensor,
    *,
    of_matrices: bool,
    joint_means: Callable[..., list[Tensor]] | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradient through the candidates' last normalisations.

    Args:
        grad: Gradient by the weighted sum, ``[P, C]``, contiguous.
        matrices: What was normalised, ``[n, P, C]``, contiguous.
        mean: Means that it was normalised by, ``[n, C]``, in the type of sums.
        inverse: ``1 / sqrt(variance + eps)``, ``[n, C]``.
        weighted_scales: Weight of the candidate times scale, ``[n, C]``.
        use_batch_stats: Whether mean and variance are those of the matrix, ``[n, 1]``: ones and zeros.
        of_matrices: Whether the gradient by the matrices is wanted.
        joint_means: Where other processes share mean and variance, means over all pixels from sums over those of this
            one.

    Returns:
        Gradient by the matrices, ``[n, P, C]``, in their type; those by scales and shifts as if all weights were one,
        ``[n, C]`` and ``[C]``, the latter the same for all candidates.
    """
    number, positions, channels = matrices.shape
    kind = accumulation_type(matrices.dtype)
    block = choose_block("mixture", 1, 1, matrices.element_size(), False)
    unit = alignment(channels)
    tiles = triton.cdiv(positions, block.pixels)
    grid = (triton.cdiv(channels, block.channels) * tiles,)
    constants = {"UNIT": unit, "PIXELS": block.pixels, "CHANNELS": block.channels}
    parts = torch.empty(tiles, number + 1, channels, dtype=kind, device=matrices.device)
    start(
        programs.sums, grid,
        grad, matrices, mean, inverse, parts, positions, channels // unit, number,
        **constants, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    sums = parts.sum(0)
    grad_scale, grad_shift = sums[:number], sums[number]
    if not of_matrices:
        return None, grad_scale, grad_shift
    # with slope = weighted_scale inverse, and the last two terms for statistics of the batch,
    # grad_x = slope (grad - grad_shift / P - (x - mean) inverse grad_scale / P)
    through, divisor = (sums, positions) if joint_means is None else (joint_means(sums)[0], 1)
    out = torch.empty_like(matrices)
    start(
        programs.gradient, grid,
        grad, matrices, weighted_scales, mean, inverse, use_batch_stats, through, out,
        positions, divisor, channels // unit, number,
        **constants, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    return out, grad_scale, grad_shift
