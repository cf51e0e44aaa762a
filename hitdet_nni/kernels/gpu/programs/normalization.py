"""Batch normalisation with the ReLU behind it, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from hitdet_nni.kernels.gpu.programs.tiles import place


@triton.jit(do_not_specialize=["positions", "channel_units"])
def normalize_relu(
    y, mean, inverse, scale, shift, out, positions, channel_units,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Normalise, scale, shift, and apply the ReLU."""
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
def sums(
    grad, y, mean, inverse, scale, shift, parts, positions, channel_units, tiles,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Sum over a part's pixels: gradients by scale and shift of a normalisation with a ReLU behind it."""
    channels = channel_units * UNIT
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    part = tl.program_id(1)
    middle = tl.load(mean + channel, mask=known, other=0.0)
    narrow = tl.load(inverse + channel, mask=known, other=0.0)
    factor = tl.load(scale + channel, mask=known, other=0.0)
    offset = tl.load(shift + channel, mask=known, other=0.0)
    grad_shift = tl.zeros([PIXELS, CHANNELS], SUM)
    grad_scale = tl.zeros([PIXELS, CHANNELS], SUM)
    for tile in range(part, tiles, tl.num_programs(1)):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        there = (pixel < positions)[:, None] & known[None, :]
        entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
        normal = (tl.load(y + entry, mask=there, other=0.0).to(SUM) - middle[None, :]) * narrow[None, :]
        given = tl.where(normal * factor[None, :] + offset[None, :] <= 0, 0.0, given)
        grad_shift += given
        grad_scale += tl.where(there, given * normal, 0.0)
    entry = part * channels + channel
    size = tl.num_programs(1) * channels
    tl.store(parts + entry, tl.sum(grad_scale, 0), mask=known)
    tl.store(parts + size + entry, tl.sum(grad_shift, 0), mask=known)


@triton.jit(do_not_specialize=["positions", "divisor", "channel_units"])
def gradient(
    grad, y, mean, inverse, scale, shift, weighted, sums, positions, divisor, channel_units,
    UNIT: tl.constexpr, BY_BATCH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute the gradient by what was normalised, in place of that by the result.

    ``sums``, over ``divisor``, hold the means of the gradients by scale and shift.
    """
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
        all_of_them = divisor.to(SUM)
        grad_scale = tl.load(sums + channel, mask=known, other=0.0) / all_of_them
        grad_shift = tl.load(sums + channels + channel, mask=known, other=0.0) / all_of_them
        given = given - grad_shift[None, :] - normal * grad_scale[None, :]
    slope = tl.load(weighted + channel, mask=known, other=0.0) * narrow
    given = given * slope[None, :]
    tl.store(grad + entry, given.to(grad.dtype.element_ty), mask=there)
