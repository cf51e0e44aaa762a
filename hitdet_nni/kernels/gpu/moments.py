"""Mean and variance of columns from parts, without cancellation.

A part is what one program has seen: how many numbers, their mean, the sum of their squared deviations from it. Parts
are joined by Chan, Golub and LeVeque's formula, in an order that depends on shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from hitdet_nni.kernels.gpu.launch import COLUMN_BLOCKS, accumulation_type, alignment, choose_block, start, triton_type
from hitdet_nni.kernels.gpu.programs import moments as programs

PARTS = 32
"""Parts that a program joins at once."""

JOINED_CHANNELS = 16
"""Channels of a program that joins parts."""


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
    def allocate(cls, parts: int, channels: int, positions: int, kind: torch.dtype, device: torch.device) -> Moments:
        """Return room for the moments of one matrix."""
        both = torch.empty(2, parts, channels, dtype=kind, device=device)
        return cls(both[0], both[1], torch.empty(parts, dtype=kind, device=device), positions)

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Return the moments of the columns of ``[n, P, C]``, contiguous."""
        number, positions, channels = x.shape
        block = choose_block("columns", 1, 1, x.element_size(), False)
        tiles = -(-positions // block.pixels)
        parts = min(tiles, COLUMN_BLOCKS)
        kind = accumulation_type(x.dtype)
        both = torch.empty(2, number, parts, channels, dtype=kind, device=x.device)
        found = cls(both[0], both[1], torch.empty(parts, dtype=kind, device=x.device), positions)
        unit = alignment(channels)
        start(
            programs.columns, (triton.cdiv(channels, block.channels), parts, number),
            x, found.means, found.deviations, found.counts, positions, channels // unit, tiles,
            UNIT=unit, PIXELS=block.pixels, CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
        )  # fmt: skip
        return found

    def join(self, eps: float) -> Tensor:
        """Return the mean, biased variance and ``1 / sqrt(variance + eps)`` of the columns.

        Returns:
            ``[3, n, C]``, without ``n`` for one matrix.
        """
        *number, parts, channels = self.means.shape
        joined = self.means.new_empty(3, *number, channels)
        start(
            programs.join, (triton.cdiv(channels, JOINED_CHANNELS), number[0] if number else 1),
            self.means, self.deviations, self.counts, joined, parts, channels, self.positions,
            EPS=eps, PARTS=PARTS, CHANNELS=JOINED_CHANNELS, SUM=triton_type(self.means.dtype), num_warps=4,
        )  # fmt: skip
        return joined
