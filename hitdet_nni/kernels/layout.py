"""Feature maps as matrices: one row a pixel, one column a channel.

The pixels of a batch have one of two orders: map by map, the usual channels-last one, or row by row, in which the first
rows of all maps come first, then the second ones. A stride-1 convolution of the maps is then one of a single high map,
dilated by the number of maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

CPU_CHUNK_BYTES = 4 * 2**20
"""Size of the pieces in which hidden channels are computed on a CPU, so that they stay in its cache."""

DEVICE_CHUNK_BYTES = 256 * 2**20
"""Size of the pieces elsewhere: enough to keep a GPU busy, little beside its memory."""

CHUNK_CHANNELS = 32
"""Pieces are multiples of this many channels."""


def channels_last(x: Tensor) -> Tensor:
    """Return the same maps ``[N, C, H, W]`` in channels-last order; not a copy where they have that order already."""
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class MapShape:
    """Size of a batch of maps.

    Attributes:
        count: Maps in the batch, N.
        height: Rows.
        width: Columns.
        by_rows: Whether their pixels are ordered row by row rather than map by map.
    """

    count: int
    height: int
    width: int
    by_rows: bool = False

    @property
    def pixels(self) -> int:
        """Rows of the matrix, ``N * H * W``."""
        return self.count * self.height * self.width

    def strided(self, stride: int) -> MapShape:
        """Return the size behind a padded convolution of the given stride."""
        return replace(self, height=-(-self.height // stride), width=-(-self.width // stride))

    def images(self, matrix: Tensor) -> Tensor:
        """View a matrix ``[N H W, C]`` as maps ``[N, C, H, W]``."""
        if self.by_rows:
            rows = matrix.view(self.height, self.count, self.width, -1)  # [H N W, C] -> [H, N, W, C]
            return rows.permute(1, 3, 0, 2)  # [H, N, W, C] -> [N, C, H, W]
        return matrix.view(self.count, self.height, self.width, -1).permute(0, 3, 1, 2)  # [N H W, C] -> [N, C, H, W]

    def matrix(self, x: Tensor) -> Tensor:
        """View maps ``[N, C, H, W]`` as a matrix ``[N H W, C]``; a copy only where they are in another order."""
        if self.by_rows:
            return x.permute(2, 0, 3, 1).reshape(-1, x.shape[1])  # [N, C, H, W] -> [H N W, C]
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # [N, C, H, W] -> [N H W, C]


def goes_by_rows(x: Tensor) -> bool:
    """Whether the pixels of maps ``[N, C, H, W]`` are ordered row by row."""
    return len(x) > 1 and x.stride(0) < x.stride(2)


def one_map(x: Tensor) -> Tensor:
    """Return maps ``[N, C, H, W]`` as one, ``[1, C, H N, W]``, channels-last, in which the rows of all alternate.

    A copy only where their pixels are ordered map by map.
    """
    count, channels, height, width = x.shape
    rows = x.permute(2, 0, 3, 1).reshape(1, height * count, width, channels)  # [N, C, H, W] -> [1, H N, W, C]
    return rows.permute(0, 3, 1, 2)  # [1, H N, W, C] -> [1, C, H N, W]


def several_maps(x: Tensor, count: int) -> Tensor:
    """Return the maps ``[N, C, H, W]`` that :func:`one_map` has made one, ``[1, C, H N, W]``; a view."""
    _, channels, rows, width = x.shape
    pixels = x.permute(0, 2, 3, 1).view(rows // count, count, width, channels)  # [1, C, H N, W] -> [H, N, W, C]
    return pixels.permute(1, 3, 0, 2)  # [H, N, W, C] -> [N, C, H, W]


def in_type(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return a tensor of any shape in a type; itself, without the cost of a call, where it has it."""
    return tensor if tensor.dtype == kind else tensor.to(kind)


def space_to_batch(x: Tensor, dilation: int) -> Tensor:
    """Return the ``dilation ** 2`` interleaved subsampled maps of each map as a batch: neighbours under dilation.

    Sizes that are no multiple of the dilation are filled up with zeros, which add nothing to a gradient. In comments on
    shapes ``d`` is the dilation, ``h`` and ``w`` are the sides of a subsampled map.

    Shape:
        ``[N, C, H, W]`` to ``[N * dilation ** 2, C, ceil(H / dilation), ceil(W / dilation)]``.
    """
    count, channels, height, width = x.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    x = x.permute(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
    if (rows * dilation, columns * dilation) == (height, width):
        parts = x.reshape(count, rows, dilation, columns, dilation, channels)  # [N, H, W, C] -> [N, h, d, w, d, C]
        parts = parts.permute(0, 2, 4, 1, 3, 5)  # [N, h, d, w, d, C] -> [N, d, d, h, w, C]
    else:
        parts = x.new_zeros(count, dilation, dilation, rows, columns, channels)
        for row, column in product(range(dilation), repeat=2):
            part = x[:, row::dilation, column::dilation]
            parts[:, row, column, : part.shape[1], : part.shape[2]] = part
    parts = parts.reshape(count * dilation**2, rows, columns, channels)  # [N, d, d, h, w, C] -> [N d d, h, w, C]
    return parts.permute(0, 3, 1, 2)  # [N d d, h, w, C] -> [N d d, C, h, w]


def batch_to_space(x: Tensor, dilation: int, height: int, width: int) -> Tensor:
    """Return the maps ``[N, C, height, width]`` whose subsampled maps :func:`space_to_batch` gave, without the
    filling.
    """
    rows, columns = x.shape[2:]
    pixels = x.permute(0, 2, 3, 1)  # [N d d, C, h, w] -> [N d d, h, w, C]
    parts = pixels.reshape(-1, dilation, dilation, rows, columns, x.shape[1])  # [N d d, h, w, C] -> [N, d, d, h, w, C]
    if (rows * dilation, columns * dilation) == (height, width):
        whole = parts.permute(0, 3, 1, 4, 2, 5)  # [N, d, d, h, w, C] -> [N, h, d, w, d, C]
        whole = whole.reshape(len(parts), height, width, -1)  # [N, h, d, w, d, C] -> [N, H, W, C]
    else:
        whole = x.new_empty(len(parts), height, width, x.shape[1])
        for row, column in product(range(dilation), repeat=2):
            part = whole[:, row::dilation, column::dilation]
            part.copy_(parts[:, row, column, : part.shape[1], : part.shape[2]])
    return whole.permute(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]


def chunk_channels(pixels: int, item_bytes: int, device: torch.device) -> int:
    """Return the hidden channels of one piece: as many as fit the device's chunk, a multiple of ``CHUNK_CHANNELS``.

    Args:
        pixels: Rows of the matrix.
        item_bytes: Bytes of a number.
        device: Where it is computed.
    """
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else DEVICE_CHUNK_BYTES
    return max(1, budget // (pixels * item_bytes * CHUNK_CHANNELS)) * CHUNK_CHANNELS


def even_pieces(total: int, largest: int) -> Iterator[slice]:
    """Cut ``range(total)`` into the fewest pieces of at most ``largest``, all but the last of one size."""
    pieces = -(-total // largest)
    size = -(-total // pieces)
    size = min(largest, -(-size // CHUNK_CHANNELS) * CHUNK_CHANNELS)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
