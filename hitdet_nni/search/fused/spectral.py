"""Dense convolution by the convolution theorem: fewer products than taps, exact but for rounding.

The discrete Fourier transform turns a convolution of tiles into a product at each frequency. Written with real numbers
(three products for a complex one, after Gauss) it is a bilinear algorithm of three constant matrices,

    outputs = recombine ((analyse inputs) * (taps_to_frequencies kernels)),

``*`` being one product of matrices a row: rows of pixels and input channels times input and output channels. Both
gradients are the same with the matrices transposed and exchanged. A 5 x 5 kernel on a map of 7 x 7 takes 121 products a
channel pair instead of 1225, a 3 x 3 kernel 94 instead of 441.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE_MAP = 8
"""Largest side of a map that is transformed as a whole; larger ones are cut into tiles."""

TILES = (4, 5, 6, 7, 8)
"""Sides of tiles to choose from, in outputs."""

MAP_COST, KERNEL_COST = 2, 3
"""What a multiply-add of the transforms of maps and of kernels counts: they move more memory than other products."""

GAIN = 1.2
"""How many times fewer multiply-adds, so counted, the algorithm must need than the sum over the taps."""

PIECE_BYTES = 2 * 2**20
"""Size of the largest of the arrays that one piece of the frequencies fills."""

PIECE_ROWS = 32
"""Frequencies that are computed together at least; products of fewer rows are slow."""

BLOCK_BYTES = 2**20
"""Size of the part of the maps or kernels that one product of their transform reads: it is to stay in the cache."""


@dataclass(frozen=True)
class Tiling:
    """How a map is cut.

    Attributes:
        height: Rows of a tile of outputs.
        width: Columns of it.
        rows: Tiles in a column of the map.
        columns: Tiles in a row of it.
        reach: Pixels by which a tile of inputs is larger on each side; 0 where the tile is the whole map.
    """

    height: int
    width: int
    rows: int
    columns: int
    reach: int

    @property
    def whole(self) -> bool:
        """Whether the tile is the map."""
        return self.rows * self.columns == 1 and self.reach == 0


@lru_cache(maxsize=256)
def choose_tiling(
    count: int, height: int, width: int, in_channels: int, out_channels: int, kernel_size: int
) -> Tiling | None:
    """The tiling with the fewest multiply-adds, or ``None`` where that is not ``GAIN`` times fewer than by taps.

    Args:
        count: Maps.
        height: Rows of a map.
        width: Columns of it.
        in_channels: Its channels.
        out_channels: Channels of the result.
        kernel_size: Side of the kernel, odd; its dilation is 1.
    """
    reach = (kernel_size - 1) // 2
    if max(height, width) <= WHOLE_MAP:
        tilings = [Tiling(height, width, 1, 1, 0)]
    else:
        tilings = [Tiling(side, side, -(-height // side), -(-width // side), reach) for side in TILES]

    def products(tiling: Tiling) -> int:
        rows = len(_matrices(tiling, kernel_size, torch.float64)[0])
        tiles = count * tiling.rows * tiling.columns
        inputs = (tiling.height + 2 * tiling.reach) * (tiling.width + 2 * tiling.reach) * in_channels
        outputs = tiling.height * tiling.width * out_channels
        pairs = in_channels * out_channels
        return rows * (tiles * (MAP_COST * (inputs + outputs) + pairs) + KERNEL_COST * kernel_size**2 * pairs)

    best = min(tilings, key=products)
    by_taps = count * height * width * kernel_size**2 * in_channels * out_channels
    return best if GAIN * products(best) <= by_taps else None


@lru_cache(maxsize=64)
def _matrices(tiling: Tiling, kernel_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """``analyse``, ``taps_to_frequencies`` and ``recombine^T``: ``[rows, pixels or taps]`` each."""
    reach = (kernel_size - 1) // 2
    lost = tiling.reach if tiling.reach else reach  # of a whole map one side's overhang may wrap into the other's
    sizes = [tiling.height + lost + tiling.reach, tiling.width + lost + tiling.reach]
    inputs, outputs, taps = (
        torch.cartesian_prod(*(torch.arange(a, b, dtype=torch.float64) for a, b in spans))
        for spans in (
            [(0, tiling.height + 2 * tiling.reach), (0, tiling.width + 2 * tiling.reach)],
            [(tiling.reach, tiling.reach + tiling.height), (tiling.reach, tiling.reach + tiling.width)],
            [(-reach, reach + 1)] * 2,
        )
    )
    analyse, transform, recombine = [], [], []
    for first in range(sizes[0]):
        for second in range(sizes[1]):
            mirrored = (-first % sizes[0], -second % sizes[1])
            if mirrored < (first, second):
                continue
            wave = 2 * math.pi * torch.tensor([first / sizes[0], second / sizes[1]], dtype=torch.float64)
            cosine, sine = (inputs @ wave).cos(), -(inputs @ wave).sin()
            of_taps, of_taps_sine = (taps @ wave).cos(), (taps @ wave).sin()
            back, back_sine = (outputs @ wave).cos() / math.prod(sizes), (outputs @ wave).sin() / math.prod(sizes)
            if mirrored == (first, second):
                analyse.append(cosine)
                transform.append(of_taps)
                recombine.append(back)
            else:
                analyse += [cosine + sine, cosine, sine]
                transform += [of_taps, of_taps_sine - of_taps, of_taps + of_taps_sine]
                recombine += [2 * (back - back_sine), -2 * back_sine, -2 * back]
    first_matrix, second_matrix, third_matrix = (
        torch.stack(rows).to(dtype) for rows in (analyse, transform, recombine)
    )
    return first_matrix, second_matrix, third_matrix


class SpectralConvolution:
    """Convolution of one size of maps with kernels, and its gradients, a few frequencies at a time.

    Args:
        tiling: How the maps are cut.
        weight: Kernels, ``[C_out, C_in, k, k]``.
    """

    def __init__(self, tiling: Tiling, weight: Tensor) -> None:
        self.tiling = tiling
        self.out_channels, self.in_channels, self.kernel_size, _ = weight.shape
        self.kernels = weight.permute(2, 3, 0, 1).reshape(self.kernel_size**2, -1)  # rows of C_in stay together
        self.analyse, self.transform, self.recombine = _matrices(tiling, self.kernel_size, weight.dtype)

    def convolve(self, x: Tensor) -> Tensor:
        """Map ``[N, C_in, H, W]`` to ``[N, C_out, H, W]``, both channels-last."""
        inputs = self._cut(x, self.tiling.reach)
        tiles = inputs.shape[1] // self.in_channels
        outputs = inputs.new_empty(self.recombine.shape[1], tiles * self.out_channels)
        pieces = _Pieces(self, tiles)
        for rows in pieces:
            products = pieces.room_outputs[rows.room]
            torch.bmm(pieces.inputs(rows, inputs), pieces.kernels(rows).transpose(1, 2), out=products)
            _accumulate(outputs, self.recombine, products, rows)
        return self._join(outputs, x.shape, self.out_channels)

    def gradients(self, grad: Tensor, x: Tensor, *, of_input: bool, of_weight: bool) -> tuple[Tensor | None, ...]:
        """Gradients by the maps and by the kernels; ``None`` where not asked for.

        Args:
            grad: Gradient by the result, ``[N, C_out, H, W]``, channels-last.
            x: The maps, channels-last.
            of_input: Whether the first is wanted.
            of_weight: Whether the second is wanted.
        """
        by_outputs = self._cut(grad, 0)
        tiles = by_outputs.shape[1] // self.out_channels
        inputs = self._cut(x, self.tiling.reach) if of_weight else None
        by_inputs = x.new_empty(self.analyse.shape[1], tiles * self.in_channels) if of_input else None
        by_kernels = torch.empty_like(self.kernels) if of_weight else None
        pieces = _Pieces(self, tiles)
        for rows in pieces:
            by_products = pieces.outputs(rows, by_outputs)
            if by_kernels is not None and inputs is not None:
                room = pieces.room_kernels[rows.room]
                torch.bmm(by_products.transpose(1, 2), pieces.inputs(rows, inputs), out=room)
                _accumulate(by_kernels, self.transform, room, rows)
            if by_inputs is not None:
                room = pieces.room_inputs[rows.room]
                torch.bmm(by_products, pieces.kernels(rows), out=room)
                _accumulate(by_inputs, self.analyse, room, rows)
        by_x = None if by_inputs is None else self._overlap(by_inputs, x.shape)
        if by_kernels is not None:
            by_kernels = by_kernels.view(self.kernel_size, self.kernel_size, self.out_channels, self.in_channels)
            by_kernels = by_kernels.permute(2, 3, 0, 1)
        return by_x, by_kernels

    def _cut(self, x: Tensor, reach: int) -> Tensor:
        """Maps as ``[pixels of a tile, tiles * channels]``, each tile larger by ``reach`` on all sides."""
        tiling = self.tiling
        x = x.permute(0, 2, 3, 1)
        if tiling.whole:
            return x.permute(1, 2, 0, 3).reshape(tiling.height * tiling.width, -1)
        down = tiling.rows * tiling.height - x.shape[1]
        right = tiling.columns * tiling.width - x.shape[2]
        if reach or down or right:
            x = F.pad(x, (0, 0, reach, reach + right, reach, reach + down))
        tiles = x.unfold(1, tiling.height + 2 * reach, tiling.height).unfold(2, tiling.width + 2 * reach, tiling.width)
        return tiles.permute(4, 5, 0, 1, 2, 3).reshape((tiling.height + 2 * reach) * (tiling.width + 2 * reach), -1)

    def _join(self, tiles: Tensor, shape: torch.Size, channels: int) -> Tensor:
        """Maps from tiles that do not overlap."""
        tiling = self.tiling
        x = tiles.view(tiling.height, tiling.width, shape[0], tiling.rows, tiling.columns, channels)
        x = x.permute(2, 3, 0, 4, 1, 5).reshape(shape[0], tiling.rows * tiling.height, -1, channels)
        return x[:, : shape[2], : shape[3]].contiguous().permute(0, 3, 1, 2)

    def _overlap(self, tiles: Tensor, shape: torch.Size) -> Tensor:
        """Sum of tiles that overlap, as maps of a shape."""
        tiling, reach = self.tiling, self.tiling.reach
        if tiling.whole:
            return self._join(tiles, shape, shape[1])
        height, width = tiling.height + 2 * reach, tiling.width + 2 * reach
        parts = tiles.view(height, width, shape[0], tiling.rows, tiling.columns, shape[1]).permute(2, 3, 4, 0, 1, 5)
        total = tiles.new_zeros(
            shape[0], tiling.rows * tiling.height + 2 * reach, tiling.columns * tiling.width + 2 * reach, shape[1]
        )
        for row in range(tiling.rows):
            top = row * tiling.height
            for column in range(tiling.columns):
                left = column * tiling.width
                total[:, top : top + height, left : left + width] += parts[:, row, column]
        inner = total[:, reach : reach + shape[2], reach : reach + shape[3]]
        return inner.contiguous().permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Rows:
    """Frequencies that are computed together: which of all, and which rows of the room for them."""

    all: slice
    room: slice


class _Pieces:
    """Pieces of the frequencies, and room for one that the next uses again, so that it stays in the cache."""

    def __init__(self, convolution: SpectralConvolution, tiles: int) -> None:
        self.convolution = convolution
        into, out, like = convolution.in_channels, convolution.out_channels, convolution.kernels
        largest = max(into * out, tiles * max(into, out)) * like.element_size()
        self.size = min(max(PIECE_ROWS, PIECE_BYTES // largest), len(convolution.analyse))
        self.room_inputs = like.new_empty(self.size, tiles, into)
        self.room_outputs = like.new_empty(self.size, tiles, out)
        self.room_kernels = like.new_empty(self.size, out, into)

    def __iter__(self) -> Iterator[_Rows]:
        total = len(self.convolution.analyse)
        for start in range(0, total, self.size):
            stop = min(start + self.size, total)
            yield _Rows(slice(start, stop), slice(0, stop - start))

    def inputs(self, rows: _Rows, tiles: Tensor) -> Tensor:
        """Some frequencies of tiles of inputs, ``[rows, tiles, C_in]``."""
        return _product(self.convolution.analyse[rows.all], tiles, self.room_inputs[rows.room])

    def outputs(self, rows: _Rows, tiles: Tensor) -> Tensor:
        """The same of gradients by the outputs, ``[rows, tiles, C_out]``."""
        return _product(self.convolution.recombine[rows.all], tiles, self.room_outputs[rows.room])

    def kernels(self, rows: _Rows) -> Tensor:
        """The same of the kernels, ``[rows, C_out, C_in]``."""
        return _product(self.convolution.transform[rows.all], self.convolution.kernels, self.room_kernels[rows.room])


def _product(matrix: Tensor, vectors: Tensor, room: Tensor) -> Tensor:
    """Write ``[rows, K] [K, J]`` to ``room``, ``[rows, ...]`` of ``J`` numbers a row, a block of columns at a time."""
    out, columns = room.flatten(1), vectors.shape[1]
    block = max(BLOCK_BYTES // (len(vectors) * vectors.element_size()), 1)
    for start in range(0, columns, block):
        torch.mm(matrix, vectors[:, start : start + block], out=out[:, start : start + block])
    return room


def _accumulate(total: Tensor, matrix: Tensor, products: Tensor, rows: _Rows) -> None:
    """Add some frequencies' ``[K, rows] [rows, J]`` to the sum over all, ``[K, J]``; the first make it."""
    torch.addmm(total, matrix[rows.all].t(), products.flatten(1), beta=0 if rows.all.start == 0 else 1, out=total)
