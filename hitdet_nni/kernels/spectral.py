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
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from hitdet_nni.kernels.products import add_product, multiply, multiply_each

WHOLE_MAP = 8
"""Largest side of a map that is transformed as a whole; larger ones are cut into tiles."""

TILES = (4, 5, 6, 7, 8)
"""Sides of tiles to choose from, in outputs."""

MAP_COST, KERNEL_COST = 2.5, 3
"""What a multiply-add of the transforms of maps and of kernels counts: they move more memory than other products."""

GAIN = 1.6
"""How many times fewer multiply-adds, so counted, the algorithm must need than the sum over the taps."""

PIECE_BYTES = 2 * 2**20
"""Size of the largest of the arrays that one piece of the frequencies fills."""

PIECE_ROWS = 32
"""Frequencies that are computed together at least; products of fewer rows are slow."""


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
    count: int, height: int, width: int, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
) -> Tiling | None:
    """Return the tiling with the fewest multiply-adds; ``None`` where that is not ``GAIN`` times fewer than by taps.

    Args:
        count: Maps.
        height: Rows of a map.
        width: Columns of it.
        in_channels: Its channels.
        out_channels: Channels of the result.
        kernel_size: Side of the kernel, odd.
        dilation: Dilation of both directions; the tiling is that of the interleaved subsampled maps.
    """
    grad_taps = count * in_channels * out_channels
    for size in (height, width):
        grad_taps *= sum(max(size - abs(tap) * dilation, 0) for tap in _taps(kernel_size))
    count, height, width = count * dilation**2, -(-height // dilation), -(-width // dilation)
    reach = (kernel_size - 1) // 2
    if max(height, width) <= WHOLE_MAP:
        tilings = [Tiling(height, width, 1, 1, 0)]
    else:
        tilings = [Tiling(side, side, -(-height // side), -(-width // side), reach) for side in TILES]

    def products(tiling: Tiling) -> float:
        rows = len(_matrices(tiling, kernel_size, torch.float64)[0])
        tiles = count * tiling.rows * tiling.columns
        inputs = (tiling.height + 2 * tiling.reach) * (tiling.width + 2 * tiling.reach) * in_channels
        outputs = tiling.height * tiling.width * out_channels
        pairs = in_channels * out_channels
        return rows * (tiles * (MAP_COST * (inputs + outputs) + pairs) + KERNEL_COST * kernel_size**2 * pairs)

    best = min(tilings, key=products)
    return best if GAIN * products(best) <= grad_taps else None


def _taps(kernel_size: int) -> range:
    """Return the positions of a kernel's taps in one direction, in pixels from its centre."""
    reach = (kernel_size - 1) // 2
    return range(-reach, reach + 1)


@lru_cache(maxsize=64)
def _matrices(tiling: Tiling, kernel_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``analyse``, ``taps_to_frequencies`` and ``recombine^T``: ``[rows, pixels or taps]`` each."""
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

    Dilation is undone by taking the interleaved subsampled maps for maps of their own; pixels beyond the edge are zero.
    Maps ``[N, C, H, W]`` are taken with their pixels in any order and given row by row (:mod:`.layout`). In comments
    on shapes ``d`` is the dilation, ``h`` and ``w`` are the sides of a tile, with its overhang where there is one, and
    ``r`` and ``c`` say how many rows and columns of tiles a subsampled map has.

    Args:
        tiling: How the subsampled maps are cut.
        weight: Kernels, ``[C_out, C_in, k, k]``.
        dilation: Dilation of both directions.
    """

    def __init__(self, tiling: Tiling, weight: Tensor, dilation: int = 1) -> None:
        self.tiling = tiling
        self.dilation = dilation
        self.out_channels, self.in_channels, self.kernel_size, _ = weight.shape
        taps = weight.permute(2, 3, 0, 1)  # [C_out, C_in, k, k] -> [k, k, C_out, C_in]
        self.kernels = taps.reshape(self.kernel_size**2, -1)  # [k, k, C_out, C_in] -> [k k, C_out C_in]
        self.analyse, self.transform, self.recombine = _matrices(tiling, self.kernel_size, weight.dtype)

    def convolve(self, x: Tensor) -> Tensor:
        """Map ``[N, C_in, H, W]`` to ``[N, C_out, H, W]``."""
        inputs = self._cut(x, self.tiling.reach)
        outputs = _Sum(self.recombine)
        for rows in self._pieces(inputs.shape[1] // self.in_channels):
            kernels = self._transformed(self.transform, rows, self.kernels, self.in_channels)
            maps = self._transformed(self.analyse, rows, inputs, self.in_channels)
            outputs.add(rows, multiply_each(maps, kernels.mT))
        return self._join(outputs.total, x.shape, self.out_channels)

    def gradients(
        self, grad: Tensor, x: Tensor, *, of_input: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients by the maps and by the kernels; ``None`` where not asked for.

        Args:
            grad: Gradient by the result, ``[N, C_out, H, W]``.
            x: The maps.
            of_input: Whether the first is wanted.
            of_weight: Whether the second is wanted.
        """
        grad_outputs = self._cut(grad, 0)
        inputs = self._cut(x, self.tiling.reach) if of_weight else None
        grad_inputs, grad_kernels = _Sum(self.analyse), _Sum(self.transform)
        for rows in self._pieces(grad_outputs.shape[1] // self.out_channels):
            by_products = self._transformed(self.recombine, rows, grad_outputs, self.out_channels)
            if inputs is not None:
                maps = self._transformed(self.analyse, rows, inputs, self.in_channels)
                grad_kernels.add(rows, multiply_each(by_products.mT, maps))
            if of_input:
                kernels = self._transformed(self.transform, rows, self.kernels, self.in_channels)
                grad_inputs.add(rows, multiply_each(by_products, kernels))
        grad_x = self._overlap(grad_inputs.total, x.shape) if of_input else None
        return grad_x, self._kernels_of(grad_kernels.total) if of_weight else None

    def _pieces(self, tiles: int) -> Iterator[slice]:
        """Return the frequencies that are computed together, so that what is computed of them stays in the cache."""
        pairs = self.in_channels * self.out_channels
        largest = max(pairs, tiles * max(self.in_channels, self.out_channels)) * self.kernels.element_size()
        size, total = max(PIECE_ROWS, PIECE_BYTES // largest), len(self.analyse)
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))

    @staticmethod
    def _transformed(matrix: Tensor, rows: slice, vectors: Tensor, channels: int) -> Tensor:
        """Return some frequencies of tiles or kernels, ``[rows, tiles or C_out, channels]``."""
        part = matrix[rows]
        products = multiply(part, vectors)
        return products.view(len(part), -1, channels)  # [rows, tiles C] -> [rows, tiles, C]

    def _kernels_of(self, rows: Tensor) -> Tensor:
        """View a row a tap, ``[k k, C_out C_in]``, as kernels ``[C_out, C_in, k, k]``."""
        size = (self.kernel_size, self.kernel_size, self.out_channels, self.in_channels)
        return rows.view(size).permute(2, 3, 0, 1)  # [k k, C_out C_in] -> [C_out, C_in, k, k]

    def _cut(self, x: Tensor, reach: int) -> Tensor:
        """Return maps as ``[pixels of a tile, tiles * channels]``, each tile larger by ``reach`` on all sides."""
        tiling, dilation = self.tiling, self.dilation
        height, width = tiling.rows * tiling.height, tiling.columns * tiling.width
        edge, down, right = reach * dilation, height * dilation - x.shape[2], width * dilation - x.shape[3]
        x = x.permute(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
        if edge or down or right:
            x = F.pad(x, (0, 0, edge, edge + right, edge, edge + down))
        size = (len(x), -1, dilation, x.shape[2] // dilation, dilation, x.shape[3])
        parts = x.reshape(size)  # [N, H, W, C] -> [N, H / d, d, W / d, d, C]
        tiles = parts.unfold(1, tiling.height + 2 * reach, tiling.height).unfold(
            3, tiling.width + 2 * reach, tiling.width
        )
        tiles = tiles.permute(6, 7, 0, 2, 4, 1, 3, 5)  # [N, r, d, c, d, C, h, w] -> [h, w, N, d, d, r, c, C]
        return tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)  # [h, w, N, ..., C] -> [h w, tiles C]

    def _join(self, tiles: Tensor, shape: torch.Size, channels: int) -> Tensor:
        """Return maps of a shape, but for their channels, from tiles that do not overlap."""
        tiling = self.tiling
        parts = self._by_tile(tiles, tiling.height, tiling.width, shape[0], channels)
        parts = parts.permute(5, 0, 3, 2, 6, 1, 4, 7)  # [h, w, N, d, d, r, c, C] -> [r, h, d, N, c, w, d, C]
        return self._crop(parts, shape, 0)

    def _overlap(self, tiles: Tensor, shape: torch.Size) -> Tensor:
        """Sum of tiles that overlap, as maps of a shape."""
        tiling, reach = self.tiling, self.tiling.reach
        if tiling.whole:
            return self._join(tiles, shape, shape[1])
        height, width = tiling.height + 2 * reach, tiling.width + 2 * reach
        parts = self._by_tile(tiles, height, width, shape[0], shape[1])
        down, right = -(-height // tiling.height), -(-width // tiling.width)  # tiles that a tile of inputs extends over
        total = tiles.new_zeros(
            tiling.rows + down - 1, tiling.height, self.dilation, shape[0],
            tiling.columns + right - 1, tiling.width, self.dilation, shape[1],
        )  # fmt: skip
        for row, column in product(range(down), range(right)):
            part = parts[row * tiling.height :, column * tiling.width :][: tiling.height, : tiling.width]
            place = total[row : row + tiling.rows, : len(part), :, :, column : column + tiling.columns, : part.shape[1]]
            place += part.permute(5, 0, 3, 2, 6, 1, 4, 7)  # [h, w, N, d, d, r, c, C] -> [r, h, d, N, c, w, d, C]
        return self._crop(total, shape, reach * self.dilation)

    def _by_tile(self, tiles: Tensor, height: int, width: int, count: int, channels: int) -> Tensor:
        """Return tiles as ``[row, column, map, phase, phase, tile's row, tile's column, channel]``."""
        phases = (self.dilation, self.dilation)
        size = (height, width, count, *phases, self.tiling.rows, self.tiling.columns, channels)
        return tiles.view(size)  # [h w, tiles C] -> [h, w, N, d, d, r, c, C]

    @staticmethod
    def _crop(parts: Tensor, shape: torch.Size, edge: int) -> Tensor:
        """Return maps without edge, from ``[tile's row, row, phase, map, tile's column, column, phase, channel]``."""
        rows = parts.flatten(4, 6).flatten(0, 2)  # [r, h, d, N, c, w, d, C] -> [H, N, W, C]
        inside = rows[edge : edge + shape[2], :, edge : edge + shape[3]]
        return inside.permute(1, 3, 0, 2)  # [H, N, W, C] -> [N, C, H, W]


class _Sum:
    """The sum over all frequencies that ends a transform back, a few frequencies at a time.

    Args:
        matrix: What a frequency adds to each pixel or tap, ``[frequencies, K]``.
    """

    total: Tensor

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def add(self, rows: slice, products: Tensor) -> None:
        """Add some frequencies, ``[rows, ...]`` of ``J`` numbers a row, to ``total``, ``[K, J]``; the first make it."""
        left, right = self.matrix[rows].t(), products.flatten(1)  # [rows, ...] -> [rows, J]
        self.total = multiply(left, right) if rows.start == 0 else add_product(self.total, left, right)
