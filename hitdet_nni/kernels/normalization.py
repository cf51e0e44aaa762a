"""Batch normalisation with the ReLU behind it, and the gradient of both, of matrices ``[P, C]``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hitdet_nni.kernels.launch import COLUMN_BLOCKS, accumulation_type, alignment, choose_block, triton_type
from hitdet_nni.kernels.tiles import place


@triton.jit(do_not_specialize=["positions", "channel_units"])
def _normalize_relu(
    y, mean, inverse, scale, shift, out, positions, channel_units,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    middle = tl.load(mean + channel, mask=known, other=0.0)
    slope = tl.load(scale + channel, mask=known, other=0.0) * tl.load(inverse + channel, mask=known, other=0.0)
    offset = tl.load(shift + channel, mask=known, other=0.0)
    value = tl.load(y + entry, mask=there, other=0.0).to(SUM)
    value = (value - middle[None, :]) * slope[None, :] + offset[None, :]
    value = tl.where(value < 0, 0.0, value)  # keeps NaN
    tl.store(out + entry, value.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["positions", "channel_units", "tiles"])
def _sums(
    grad, y, mean, inverse, scale, shift, parts, positions, channel_units, tiles,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    part = tl.program_id(1)
    middle = tl.load(mean + channel, mask=known, other=0.0)
    narrow = tl.load(inverse + channel, mask=known, other=0.0)
    factor = tl.load(scale + channel, mask=known, other=0.0)
    offset = tl.load(shift + channel, mask=known, other=0.0)
    by_shift = tl.zeros([PIXELS, CHANNELS], SUM)
    by_scale = tl.zeros([PIXELS, CHANNELS], SUM)
    for tile in range(part, tiles, tl.num_programs(1)):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        there = (pixel < positions)[:, None] & known[None, :]
        entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
        normal = (tl.load(y + entry, mask=there, other=0.0).to(SUM) - middle[None, :]) * narrow[None, :]
        given = tl.where(normal * factor[None, :] + offset[None, :] <= 0, 0.0, given)
        by_shift += given
        by_scale += tl.where(there, given * normal, 0.0)
    entry = part * channels + channel
    size = tl.num_programs(1) * channels
    tl.store(parts + entry, tl.sum(by_scale, 0), mask=known)
    tl.store(parts + size + entry, tl.sum(by_shift, 0), mask=known)


@triton.jit(do_not_specialize=["positions", "channel_units"])
def _gradient(
    grad, y, mean, inverse, scale, shift, slope, sums, positions, inverse_positions, channel_units,
    UNIT: tl.constexpr, BY_BATCH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    middle = tl.load(mean + channel, mask=known, other=0.0)
    narrow = tl.load(inverse + channel, mask=known, other=0.0)
    factor = tl.load(scale + channel, mask=known, other=0.0)
    offset = tl.load(shift + channel, mask=known, other=0.0)
    given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
    normal = (tl.load(y + entry, mask=there, other=0.0).to(SUM) - middle[None, :]) * narrow[None, :]
    given = tl.where(normal * factor[None, :] + offset[None, :] <= 0, 0.0, given)
    if BY_BATCH:
        by_scale = tl.load(sums + channel, mask=known, other=0.0) * inverse_positions
        by_shift = tl.load(sums + channels + channel, mask=known, other=0.0) * inverse_positions
        given = given - by_shift[None, :] - normal * by_scale[None, :]
    given = given * tl.load(slope + channel, mask=known, other=0.0)[None, :]
    tl.store(grad + entry, given.to(grad.dtype.element_ty), mask=there)


def normalize_relu(y: Tensor, mean: Tensor, inverse: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(scale (y - mean) inverse + shift)``.

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
    _normalize_relu[(triton.cdiv(channels, block.channels) * triton.cdiv(positions, block.pixels),)](
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
    slope: Tensor,
    *,
    by_batch: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of :func:`normalize_relu`; the one by ``y`` takes the place of ``grad``.

    Args:
        grad: Gradient by the result, ``[P, C]``, contiguous; changed.
        y: What was normalised.
        mean: As it was normalised.
        inverse: As it was normalised.
        scale: As it was normalised.
        shift: As it was normalised.
        slope: ``scale inverse``, or that times the weight of what is behind, which the gradient by ``y`` is to have.
        by_batch: Whether mean and variance are those of ``y``.

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
    _sums[(across, number)](
        grad, y, mean, inverse, scale, shift, parts, positions, channels // unit, tiles,
        UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    sums = parts.sum(1)
    _gradient[(across * tiles,)](
        grad, y, mean, inverse, scale, shift, slope, sums, positions, 1.0 / positions, channels // unit,
        UNIT=unit, BY_BATCH=by_batch, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind),
        num_warps=block.warps,
    )  # fmt: skip
    return sums[0], sums[1]
