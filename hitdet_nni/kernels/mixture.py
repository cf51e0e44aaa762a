"""The weighted sum of candidates behind their last normalisations, and its gradient, for several candidates at once.

A candidate's projection ``m_i``, ``[P, C]``, enters the sum as ``slope_i m_i`` and a constant a channel; all that its
gradient needs of a pixel is the gradient by the sum and ``m_i``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hitdet_nni.kernels.launch import accumulation_type, alignment, choose_block, triton_type
from hitdet_nni.kernels.tiles import place


@triton.jit(do_not_specialize=["positions", "channel_units", "number"])
def _add_weighted(
    total, matrices, slopes, positions, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    result = tl.load(total + entry, mask=there, other=0.0)
    size = positions.to(tl.int64) * channels
    for index in range(number):
        slope = tl.load(slopes + index * channels + channel, mask=known, other=0.0)
        value = tl.load(matrices + index * size + entry, mask=there, other=0.0).to(SUM)
        result += value * slope[None, :]
    tl.store(total + entry, result, mask=there)


@triton.jit(do_not_specialize=["positions", "channel_units", "number"])
def _sums(
    grad, matrices, mean, inverse, parts, positions, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
    size = positions.to(tl.int64) * channels
    row = tile.to(tl.int64) * (number + 1)
    for index in range(number):
        middle = tl.load(mean + index * channels + channel, mask=known, other=0.0)
        narrow = tl.load(inverse + index * channels + channel, mask=known, other=0.0)
        value = tl.load(matrices + index * size + entry, mask=there, other=0.0).to(SUM)
        normal = (value - middle[None, :]) * narrow[None, :]
        products = tl.where(there, given * normal, 0.0)
        tl.store(parts + (row + index) * channels + channel, tl.sum(products, 0), mask=known)
    tl.store(parts + (row + number) * channels + channel, tl.sum(given, 0), mask=known)


@triton.jit(do_not_specialize=["positions", "channel_units", "number"])
def _gradient(
    grad, matrices, coefficients, out, positions, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
    size = positions.to(tl.int64) * channels
    for index in range(number):
        row = coefficients + index * channels + channel
        by_grad = tl.load(row, mask=known, other=0.0)
        by_value = tl.load(row + number * channels, mask=known, other=0.0)
        constant = tl.load(row + 2 * number * channels, mask=known, other=0.0)
        middle = tl.load(row + 3 * number * channels, mask=known, other=0.0)
        value = tl.load(matrices + index * size + entry, mask=there, other=0.0).to(SUM) - middle[None, :]
        result = given * by_grad[None, :] + value * by_value[None, :] + constant[None, :]
        tl.store(out + index * size + entry, result.to(out.dtype.element_ty), mask=there)


def add_weighted_(total: Tensor, matrices: Tensor, slopes: Tensor) -> None:
    """Add ``sum_i slopes_i matrices_i`` to ``total``.

    Args:
        total: ``[P, C]`` in the type of sums; changed.
        matrices: ``[n, P, C]``, contiguous.
        slopes: ``[n, C]`` in the type of sums.
    """
    number, positions, channels = matrices.shape
    block = choose_block("mixture", 1, 1, matrices.element_size(), False)
    unit = alignment(channels)
    _add_weighted[(triton.cdiv(channels, block.channels) * triton.cdiv(positions, block.pixels),)](
        total, matrices, slopes, positions, channels // unit, number,
        UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(total.dtype),
        num_warps=block.warps,
    )  # fmt: skip


def last_gradient(
    grad: Tensor,
    matrices: Tensor,
    mean: Tensor,
    inverse: Tensor,
    slopes: Tensor,
    by_batch: Tensor,
    *,
    of_matrices: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradient through the candidates' last normalisations.

    Args:
        grad: Gradient by the weighted sum, ``[P, C]``, contiguous.
        matrices: What was normalised, ``[n, P, C]``, contiguous.
        mean: Means that it was normalised by, ``[n, C]``, in the type of sums.
        inverse: ``1 / sqrt(variance + eps)``, ``[n, C]``.
        slopes: Weight of the candidate times scale times ``inverse``, ``[n, C]``.
        by_batch: Whether mean and variance are those of the matrix, ``[n, 1]``: ones and zeros.
        of_matrices: Whether the gradient by the matrices is wanted.

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
    _sums[grid](
        grad, matrices, mean, inverse, parts, positions, channels // unit, number,
        **constants, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    sums = parts.sum(0)
    by_scale, by_shift = sums[:number], sums[number]
    if not of_matrices:
        return None, by_scale, by_shift
    # by_x = slope (grad - by_shift / P - (x - mean) inverse by_scale / P), the last two for statistics of the batch
    through = slopes * by_batch / -positions
    coefficients = torch.stack([slopes, through * inverse * by_scale, through * by_shift, mean])
    out = torch.empty_like(matrices)
    _gradient[grid](
        grad, matrices, coefficients, out, positions, channels // unit, number,
        **constants, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    return out, by_scale, by_shift
