"""Mean and variance of columns from parts, without cancellation.

A part is what one program has seen: how many numbers, their mean, the sum of their squared deviations from it. Parts are
joined by Chan, Golub and LeVeque's formula, in an order that depends on shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hitdet_nni.kernels.launch import COLUMN_BLOCKS, accumulation_type, alignment, choose_block, triton_type

PARTS = 32
"""Parts that a program joins at once."""

JOINED_CHANNELS = 16
"""Channels of a program that joins parts."""


@triton.jit(do_not_specialize=["positions", "channels", "parts"])
def _join(
    means, deviations, counts, joined, parts, channels, positions, inverse_positions, eps,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    start = tl.program_id(1).to(tl.int64) * parts * channels
    total = tl.zeros([PARTS, CHANNELS], SUM)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & known[None, :]
        number = tl.load(counts + part, mask=part < parts, other=0.0)
        place = start + part[:, None] * channels + channel[None, :]
        total += tl.load(means + place, mask=there, other=0.0) * number[:, None]
    mean = tl.sum(total, 0) * inverse_positions
    total = tl.zeros([PARTS, CHANNELS], SUM)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & known[None, :]
        number = tl.load(counts + part, mask=part < parts, other=0.0)
        place = start + part[:, None] * channels + channel[None, :]
        difference = tl.load(means + place, mask=there, other=0.0) - mean[None, :]
        within = tl.load(deviations + place, mask=there, other=0.0)
        total += tl.where(there, within + number[:, None] * difference * difference, 0.0)
    variance = tl.sum(total, 0) * inverse_positions
    place = tl.program_id(1) * channels + channel
    size = tl.num_programs(1) * channels
    tl.store(joined + place, mean, mask=known)
    tl.store(joined + size + place, variance, mask=known)
    tl.store(joined + 2 * size + place, 1.0 / tl.sqrt(variance + eps), mask=known)


@triton.jit(do_not_specialize=["positions", "channel_units", "tiles"])
def _columns(
    x, means, deviations, counts, positions, channel_units, tiles,
    UNIT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
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


@dataclass(frozen=True)
class Moments:
    """Moments of parts of the columns of one matrix, or of several of one size.

    Attributes:
        means: ``[n, parts, C]``; without ``n`` for one matrix.
        deviations: Sums of squared deviations from them, of the same shape.
        counts: Rows of each part, ``[parts]``.
        positions: Rows of a matrix, their sum.
    """

    means: Tensor
    deviations: Tensor
    counts: Tensor
    positions: int

    @classmethod
    def room(cls, parts: int, channels: int, positions: int, kind: torch.dtype, device: torch.device) -> Moments:
        """Room for the moments of one matrix."""
        both = torch.empty(2, parts, channels, dtype=kind, device=device)
        return cls(both[0], both[1], torch.empty(parts, dtype=kind, device=device), positions)

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Moments of the columns of ``[n, P, C]``, contiguous."""
        number, positions, channels = x.shape
        block = choose_block("columns", 1, 1, x.element_size(), False)
        tiles = -(-positions // block.pixels)
        parts = min(tiles, COLUMN_BLOCKS)
        kind = accumulation_type(x.dtype)
        both = torch.empty(2, number, parts, channels, dtype=kind, device=x.device)
        found = cls(both[0], both[1], torch.empty(parts, dtype=kind, device=x.device), positions)
        unit = alignment(channels)
        _columns[(triton.cdiv(channels, block.channels), parts, number)](
            x, found.means, found.deviations, found.counts, positions, channels // unit, tiles,
            UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
        )  # fmt: skip
        return found

    def join(self, eps: float) -> Tensor:
        """Mean, biased variance and ``1 / sqrt(variance + eps)`` of the columns.

        Returns:
            ``[3, n, C]``, without ``n`` for one matrix.
        """
        *number, parts, channels = self.means.shape
        joined = self.means.new_empty(3, *number, channels)
        _join[(triton.cdiv(channels, JOINED_CHANNELS), number[0] if number else 1)](
            self.means, self.deviations, self.counts, joined, parts, channels, self.positions,
            1.0 / self.positions, eps,
            PARTS=PARTS, CHANNELS=JOINED_CHANNELS, SUM=triton_type(self.means.dtype), num_warps=4,
        )  # fmt: skip
        return joined
