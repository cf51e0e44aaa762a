"""Depthwise convolution of channels-last maps and its two gradients, each one pass over memory.

What surrounds the convolution in an inverted residual rides along: the ReLU of what comes in is applied while it is read,
the sums for the next batch normalisation are taken while the result is written. Kernel sizes are odd, padding is
``(k - 1) dilation / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hitdet_nni.kernels.launch import FLAT_PIXELS, accumulation_type, alignment, choose_block, triton_type
from hitdet_nni.kernels.moments import Moments
from hitdet_nni.kernels.tiles import place, tile_pixels

TARGET_PROGRAMS = 2048
"""Programs of a weight gradient, about: enough for every GPU, few enough for little to be summed at the end."""


SIZES = ["count", "height", "width", "height_out", "width_out", "channel_units", "dilation"]
"""Arguments whose values make no program of their own: compiling one takes longer than what is gained."""


@dataclass(frozen=True)
class Geometry:
    """A depthwise convolution of a batch of maps.

    Attributes:
        count: Maps in the batch, N.
        height: Rows of the input.
        width: Columns of the input.
        kernel_size: Side of the kernels, odd.
        stride: Stride of both directions.
        dilation: Dilation of both directions.
    """

    count: int
    height: int
    width: int
    kernel_size: int
    stride: int
    dilation: int

    @property
    def height_out(self) -> int:
        """Rows of the output."""
        return -(-self.height // self.stride)

    @property
    def width_out(self) -> int:
        """Columns of the output."""
        return -(-self.width // self.stride)

    @property
    def positions(self) -> int:
        """Pixels of the input batch, ``N H W``."""
        return self.count * self.height * self.width

    @property
    def positions_out(self) -> int:
        """Pixels of the output batch."""
        return self.count * self.height_out * self.width_out

    @property
    def reach(self) -> int:
        """Padding."""
        return (self.kernel_size - 1) * self.dilation // 2


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x, weight, y, means, deviations, counts,
    count, height, width, height_out, width_out, channel_units, dilation,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
    RELU: tl.constexpr, MOMENTS: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    image, row, column, exists = tile_pixels(tile, count, height_out, width_out, PIXELS, ROWS, FLAT)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    first_row = row * STRIDE - reach
    first_column = column * STRIDE - reach
    start = (image * height + first_row).to(tl.int64) * width + first_column
    total = tl.zeros([PIXELS, CHANNELS], SUM)
    for down in range(K):
        inside_row = exists & (first_row + down * dilation >= 0) & (first_row + down * dilation < height)
        for across in tl.static_range(K):
            inside = inside_row & (first_column + across * dilation >= 0) & (first_column + across * dilation < width)
            position = start + (down * dilation) * width + across * dilation
            source = x + position[:, None] * channels + channel[None, :]
            value = tl.load(source, mask=inside[:, None] & known[None, :], other=0.0).to(SUM)
            if RELU:
                value = tl.where(value < 0, 0.0, value)  # keeps NaN
            tap = tl.load(weight + (down * K + across) * channels + channel, mask=known, other=0.0).to(SUM)
            total += value * tap[None, :]
    position = (image * height_out + row).to(tl.int64) * width_out + column
    written = exists[:, None] & known[None, :]
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + position[:, None] * channels + channel[None, :], rounded, mask=written)
    if MOMENTS:
        total = tl.where(written, rounded.to(SUM), 0.0)
        number = tl.sum(exists.to(SUM), 0)
        mean = tl.sum(total, 0) / tl.maximum(number, 1.0)
        difference = tl.where(written, total - mean[None, :], 0.0)
        part = tile * channels + channel
        tl.store(means + part, mean, mask=known)
        tl.store(deviations + part, tl.sum(difference * difference, 0), mask=known)
        tl.store(counts + tile, number)


@triton.jit(do_not_specialize=SIZES)
def _grad_x(
    grad, weight, source, by_x, sums,
    count, height, width, height_out, width_out, channel_units, dilation,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
    RELU: tl.constexpr, SUMS: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    tile, channel = place(channels, CHANNELS)
    image, row, column, exists = tile_pixels(tile, count, height, width, PIXELS, ROWS, FLAT)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    total = tl.zeros([PIXELS, CHANNELS], SUM)
    for down in range(K):
        output_row = row + reach - down * dilation
        inside_row = exists & (output_row >= 0)
        if STRIDE > 1:
            inside_row = inside_row & (output_row % STRIDE == 0)
            output_row = output_row // STRIDE
        inside_row = inside_row & (output_row < height_out)
        start = (image * height_out + output_row).to(tl.int64) * width_out
        for across in tl.static_range(K):
            output_column = column + reach - across * dilation
            inside = inside_row & (output_column >= 0)
            if STRIDE > 1:
                inside = inside & (output_column % STRIDE == 0)
                output_column = output_column // STRIDE
            inside = inside & (output_column < width_out)
            given = grad + (start + output_column)[:, None] * channels + channel[None, :]
            value = tl.load(given, mask=inside[:, None] & known[None, :], other=0.0).to(SUM)
            tap = tl.load(weight + (down * K + across) * channels + channel, mask=known, other=0.0).to(SUM)
            total += value * tap[None, :]
    position = (image * height + row).to(tl.int64) * width + column
    entry = position[:, None] * channels + channel[None, :]
    written = exists[:, None] & known[None, :]
    if RELU:
        given = tl.load(source + entry, mask=written, other=0.0)
        total = tl.where(given <= 0, 0.0, total)
    rounded = total.to(by_x.dtype.element_ty)
    tl.store(by_x + entry, rounded, mask=written)
    if SUMS:
        total = tl.where(written, rounded.to(SUM), 0.0)
        tl.store(sums + tile * channels + channel, tl.sum(total, 0), mask=known)


@triton.jit(do_not_specialize=[*SIZES, "tiles"])
def _grad_weights(
    grad, x, parts,
    count, height, width, height_out, width_out, channel_units, dilation, tiles,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
    RELU: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    tap = tl.program_id(1) * TAPS + tl.arange(0, TAPS)
    reach = (K - 1) * dilation // 2
    down = (tap // K) * dilation - reach
    across = (tap % K) * dilation - reach
    total = tl.zeros([TAPS, PIXELS, CHANNELS], SUM)
    part = tl.program_id(2)
    for tile in range(part, tiles, tl.num_programs(2)):
        image, row, column, exists = tile_pixels(tile, count, height_out, width_out, PIXELS, ROWS, FLAT)
        position = (image * height_out + row).to(tl.int64) * width_out + column
        written = exists[:, None] & known[None, :]
        by_y = tl.load(grad + position[:, None] * channels + channel[None, :], mask=written, other=0.0).to(SUM)
        source_row = row[None, :] * STRIDE + down[:, None]
        source_column = column[None, :] * STRIDE + across[:, None]
        inside = (source_row >= 0) & (source_row < height) & (source_column >= 0) & (source_column < width)
        inside = inside & exists[None, :] & (tap < K * K)[:, None]
        entry = (image[None, :] * height + source_row).to(tl.int64) * width + source_column
        entry = entry[:, :, None] * channels + channel[None, None, :]
        value = tl.load(x + entry, mask=inside[:, :, None] & known[None, None, :], other=0.0).to(SUM)
        if RELU:
            value = tl.where(value < 0, 0.0, value)
        total += by_y[None, :, :] * value
    result = tl.sum(total, 1)
    entry = (part * K * K + tap)[:, None] * channels + channel[None, :]
    tl.store(parts + entry, result, mask=(tap < K * K)[:, None] & known[None, :])


def _is_flat(height: int, width: int) -> bool:
    return height * width <= FLAT_PIXELS


def _tiles(count: int, height: int, width: int, pixels: int, rows: int, flat: bool) -> int:
    if flat:
        return -(-count * height * width // pixels)
    return count * -(-height // rows) * -(-width // (pixels // rows))


def taps_outermost(weight: Tensor) -> Tensor:
    """Kernels ``[C, 1, k, k]`` as ``[k k, C]``, in which a program reads those of its channels at once."""
    return weight.flatten(1).t().contiguous()


def forward(x: Tensor, weight: Tensor, geometry: Geometry, *, relu: bool, moments: bool) -> tuple[Tensor, Moments | None]:
    """Depthwise convolution of ``x``, or of its ReLU.

    Args:
        x: Input, ``[P, C]``, contiguous.
        weight: Kernels, ``[k k, C]`` (:func:`taps_outermost`).
        geometry: Sizes.
        relu: Whether the ReLU of ``x`` is convolved.
        moments: Whether mean and variance of the output's columns are wanted.

    Returns:
        ``[P_out, C]`` of the type of ``x``, and the moments of its parts.
    """
    channels = x.shape[1]
    flat = _is_flat(geometry.height_out, geometry.width_out)
    block = choose_block("forward", geometry.kernel_size, x.element_size(), flat)
    tiles = _tiles(geometry.count, geometry.height_out, geometry.width_out, block.pixels, block.rows, flat)
    kind = accumulation_type(x.dtype)
    y = x.new_empty(geometry.positions_out, channels)
    found = Moments.room(tiles, channels, geometry.positions_out, kind, x.device) if moments else None
    parts = (y, y, y) if found is None else (found.means, found.deviations, found.counts)
    unit = alignment(channels)
    _forward[(triton.cdiv(channels, block.channels) * tiles,)](
        x, weight, y, *parts,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride,
        RELU=relu, MOMENTS=moments, PIXELS=block.pixels, ROWS=block.rows, FLAT=flat,
        CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    return y, found


def grad_x(
    grad: Tensor, weight: Tensor, source: Tensor | None, geometry: Geometry, *, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradient of :func:`forward` by its input.

    Args:
        grad: Gradient by the output, ``[P_out, C]``, contiguous.
        weight: Kernels, ``[k k, C]``.
        source: The input, ``[P, C]``, where its ReLU was convolved; else ``None``.
        geometry: Sizes.
        sums: Whether the sums of the result's columns are wanted.

    Returns:
        ``[P, C]`` of the type of ``grad``, and the sums, ``[C]``.
    """
    channels = grad.shape[1]
    flat = _is_flat(geometry.height, geometry.width)
    block = choose_block("grad_x", geometry.kernel_size, grad.element_size(), flat)
    tiles = _tiles(geometry.count, geometry.height, geometry.width, block.pixels, block.rows, flat)
    kind = accumulation_type(grad.dtype)
    by_x = grad.new_empty(geometry.positions, channels)
    parts = torch.empty(tiles, channels, dtype=kind, device=grad.device) if sums else None
    unit = alignment(channels)
    _grad_x[(triton.cdiv(channels, block.channels) * tiles,)](
        grad, weight, grad if source is None else source, by_x, by_x if parts is None else parts,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride,
        RELU=source is not None, SUMS=sums, PIXELS=block.pixels, ROWS=block.rows, FLAT=flat,
        CHANNELS=block.channels, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    return by_x, None if parts is None else parts.sum(0)


def grad_weights(grad: Tensor, x: Tensor, geometry: Geometry, *, relu: bool) -> Tensor:
    """Gradient of :func:`forward` by its kernels.

    Args:
        grad: Gradient by the output, ``[P_out, C]``, contiguous.
        x: The input, ``[P, C]``, contiguous.
        geometry: Sizes.
        relu: Whether the ReLU of ``x`` was convolved.

    Returns:
        ``[C, 1, k, k]``, in single precision at least.
    """
    channels, kernel_size = grad.shape[1], geometry.kernel_size
    flat = _is_flat(geometry.height_out, geometry.width_out)
    block = choose_block("grad_weights", kernel_size, grad.element_size(), flat)
    tiles = _tiles(geometry.count, geometry.height_out, geometry.width_out, block.pixels, block.rows, flat)
    across = triton.cdiv(channels, block.channels) * triton.cdiv(kernel_size**2, block.taps)
    splits = min(tiles, max(1, TARGET_PROGRAMS // across))
    kind = accumulation_type(grad.dtype)
    parts = torch.empty(splits, kernel_size**2, channels, dtype=kind, device=grad.device)
    unit = alignment(channels)
    _grad_weights[(triton.cdiv(channels, block.channels), triton.cdiv(kernel_size**2, block.taps), splits)](
        grad, x, parts,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, tiles,
        UNIT=unit, K=kernel_size, STRIDE=geometry.stride,
        RELU=relu, PIXELS=block.pixels, ROWS=block.rows, FLAT=flat,
        CHANNELS=block.channels, TAPS=block.taps, SUM=triton_type(kind), num_warps=block.warps,
    )  # fmt: skip
    return parts.sum(0).t().reshape(channels, 1, kernel_size, kernel_size)
