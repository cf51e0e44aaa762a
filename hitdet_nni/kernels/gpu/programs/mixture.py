"""Weighted sum of candidates and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from hitdet_nni.kernels.gpu.programs.tiles import place


@triton.jit(do_not_specialize=["positions", "channel_units", "number"])
def add_weighted(
    total, matrices, mean, inverse, weighted_scales, positions, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Add the scaled normalised maps of all candidates to the sum, pixel by pixel."""
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    result = tl.load(total + entry, mask=there, other=0.0)
    size = positions.to(tl.int64) * channels
    for index in range(number):
        row = index * channels + channel
        middle = tl.load(mean + row, mask=known, other=0.0)
        narrow = tl.load(inverse + row, mask=known, other=0.0)
        slope = tl.load(weighted_scales + row, mask=known, other=0.0) * narrow
        value = tl.load(matrices + index * size + entry, mask=there, other=0.0).to(SUM)
        result += (value - middle[None, :]) * slope[None, :]
    tl.store(total + entry, result, mask=there)


@triton.jit(do_not_specialize=["positions", "channel_units", "number"])
def sums(
    grad, matrices, mean, inverse, parts, positions, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Sum over a tile's pixels, for each candidate, the gradient times the normalised map; then the gradient."""
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


@triton.jit(do_not_specialize=["positions", "divisor", "channel_units", "number"])
def gradient(
    grad, matrices, weighted_scales, mean, inverse, by_batch, through, out, positions, divisor, channel_units, number,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute the gradient by each candidate's map: multiples of that by the sum and of the centred map, a constant.

    ``through``, over ``divisor``, holds the means of what :func:`sums` adds up.
    """
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    known = channel < channels
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    there = (pixel < positions)[:, None] & known[None, :]
    entry = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    given = tl.load(grad + entry, mask=there, other=0.0).to(SUM)
    size = positions.to(tl.int64) * channels
    all_of_them = divisor.to(SUM)
    of_shift = tl.load(through + number * channels + channel, mask=known, other=0.0) / all_of_them
    for index in range(number):
        row = index * channels + channel
        middle = tl.load(mean + row, mask=known, other=0.0)
        narrow = tl.load(inverse + row, mask=known, other=0.0)
        slope = tl.load(weighted_scales + row, mask=known, other=0.0) * narrow
        of_scale = tl.load(through + row, mask=known, other=0.0) / all_of_them
        back = -slope * tl.load(by_batch + index)
        value = tl.load(matrices + index * size + entry, mask=there, other=0.0).to(SUM) - middle[None, :]
        result = given * slope[None, :] + value * (back * narrow * of_scale)[None, :] + (back * of_shift)[None, :]
        tl.store(out + index * size + entry, result.to(out.dtype.element_ty), mask=there)
