"""Mean and variance of columns, by parts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["positions", "channels", "parts"])
def join(
    means, deviations, counts, joined, parts, channels, positions,
    EPS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute mean and variance of all parts from those of each, in two passes over the parts."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    all_of_them = positions.to(SUM)
    start = tl.program_id(1).to(tl.int64) * parts * channels
    total = tl.zeros([PARTS, CHANNELS], SUM)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & known[None, :]
        number = tl.load(counts + part, mask=part < parts, other=0.0)
        place = start + part[:, None] * channels + channel[None, :]
        total += tl.load(means + place, mask=there, other=0.0) * number[:, None]
    mean = tl.sum(total, 0) / all_of_them
    total = tl.zeros([PARTS, CHANNELS], SUM)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & known[None, :]
        number = tl.load(counts + part, mask=part < parts, other=0.0)
        place = start + part[:, None] * channels + channel[None, :]
        difference = tl.load(means + place, mask=there, other=0.0) - mean[None, :]
        within = tl.load(deviations + place, mask=there, other=0.0)
        total += tl.where(there, within + number[:, None] * difference * difference, 0.0)
    variance = tl.sum(total, 0) / all_of_them
    place = tl.program_id(1) * channels + channel
    size = tl.num_programs(1) * channels
    tl.store(joined + place, mean, mask=known)
    tl.store(joined + size + place, variance, mask=known)
    tl.store(joined + 2 * size + place, 1.0 / tl.sqrt(variance + EPS), mask=known)


@triton.jit(do_not_specialize=["positions", "channel_units", "tiles"])
def columns(
    x, means, deviations, counts, positions, channel_units, tiles,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute moments of a part of the rows: sums of differences from its first row and of their squares."""
    channels = channel_units * UNIT
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    part = tl.program_id(1)
    start = tl.program_id(2).to(tl.int64) * positions
    total = tl.zeros([PIXELS, CHANNELS], SUM)
    squares = tl.zeros([PIXELS, CHANNELS], SUM)
    number = tl.zeros([PIXELS], SUM)
    # Sums of differences from the part's first row: a large mean does not swallow them.
    first = tl.load(x + (start + part * PIXELS) * channels + channel, mask=known, other=0.0).to(SUM)
    for tile in range(part, tiles, tl.num_programs(1)):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        there = (pixel < positions)[:, None] & known[None, :]
        value = tl.load(x + (start + pixel)[:, None] * channels + channel[None, :], mask=there, other=0.0).to(SUM)
        value = tl.where(there, value - first[None, :], 0.0)
        total += value
        squares += value * value
        number += (pixel < positions).to(SUM)
    seen = tl.sum(number, 0)
    shifted = tl.sum(total, 0) / seen
    place = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + part) * channels + channel
    tl.store(means + place, first + shifted, mask=known)
    within = tl.sum(squares, 0) - seen * shifted * shifted
    tl.store(deviations + place, tl.maximum(within, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=known)
    tl.store(counts + part, seen)
