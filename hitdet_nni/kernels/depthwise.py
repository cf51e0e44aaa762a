"""Depthwise convolution of channels-last maps and its two gradients, each one pass over memory.

What surrounds the convolution in an inverted residual rides along: the ReLU of what comes in is applied while it is read,
the sums for the next batch normalisation are taken while the result is written. Kernel sizes are odd, padding is
``(k - 1) dilation / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from hitdet_nni.kernels.launch import FLAT_PIXELS, Block, Family, accumulation_type, alignment, choose_block, triton_type
from hitdet_nni.kernels.moments import Moments
from hitdet_nni.kernels.tiles import place, tile_pixels

PROGRAMS = 2112
"""Programs of a launch, at most: enough for every GPU, few enough for little to be summed at the end."""


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


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def _convolve(
    x, weight, source, y, means, deviations, counts,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, MASK: tl.constexpr,
    SUMS: tl.constexpr, MOMENTS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr,
    FLAT: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """A program computes COLUMNS outputs at distances of the dilation for each of its pixels: they share inputs."""
    channels = channel_units * UNIT
    part, channel = place(channels, CHANNELS)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    anchors = tl.cdiv(width_out, COLUMNS * dilation) * dilation
    zeros = tl.zeros([PIXELS, CHANNELS], SUM)
    first, total, squares = zeros, zeros, zeros
    number = tl.zeros([PIXELS], SUM)
    for tile in range(part, tiles, parts):
        image, row, anchor, exists = tile_pixels(tile, count, height_out, anchors, PIXELS, ROWS, FLAT)
        column = (anchor // dilation) * (COLUMNS * dilation) + anchor % dilation
        first_row = row * STRIDE - reach
        first_column = column * STRIDE - reach
        start = (image * height + first_row).to(tl.int64) * width + first_column
        inputs = x + (start[:, None] * channels + channel[None, :])
        outputs = ()
        for _ in tl.static_range(COLUMNS):
            outputs = outputs + (zeros,)
        for down in range(K):
            line = first_row + down * dilation
            inside_row = exists & (line >= 0) & (line < height)
            taps = ()
            for across in tl.static_range(K):
                taps = taps + (tl.load(weight + (down * K + across) * channels + channel, mask=known, other=0.0).to(SUM),)
            inputs_row = inputs + (down * dilation * width) * channels
            for step in tl.static_range(K + COLUMNS - 1):
                position = first_column + step * dilation
                inside = inside_row & (position >= 0) & (position < width)
                value = tl.load(
                    inputs_row + (step * dilation) * channels, mask=inside[:, None] & known[None, :], other=0.0
                ).to(SUM)
                if RELU:
                    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                added = ()
                for output in tl.static_range(COLUMNS):
                    if (step >= output) and (step - output < K):
                        added = added + (outputs[output] + value * taps[step - output][None, :],)
                    else:
                        added = added + (outputs[output],)
                outputs = added
        start = (image * height_out + row).to(tl.int64) * width_out + column
        entry = start[:, None] * channels + channel[None, :]
        for output in tl.static_range(COLUMNS):
            there = exists & (column + output * dilation < width_out)
            written = there[:, None] & known[None, :]
            result = outputs[output]
            here = entry + (output * dilation) * channels
            if MASK:
                result = tl.where(tl.load(source + here, mask=written, other=0.0) <= 0, 0.0, result)
            rounded = result.to(y.dtype.element_ty)
            tl.store(y + here, rounded, mask=written)
            if SUMS:
                total += tl.where(written, rounded.to(SUM), 0.0)
            if MOMENTS:
                result = tl.where(written, rounded.to(SUM), 0.0)
                if output == 0:
                    first = tl.where(tile == part, result, first)
                difference = tl.where(written, result - first, 0.0)
                total += difference
                squares += difference * difference
                number += there.to(SUM)
    if SUMS:
        tl.store(means + part * channels + channel, tl.sum(total, 0), mask=known)
    if MOMENTS:
        some = tl.maximum(number, 1.0)[:, None]
        mean = first + total / some
        squares = squares - total * total / some
        all_of_them = tl.sum(number, 0)
        joint = tl.sum(mean * number[:, None], 0) / tl.maximum(all_of_them, 1.0)
        difference = mean - joint[None, :]
        within = tl.sum(squares + number[:, None] * difference * difference, 0)
        tl.store(means + part * channels + channel, joint, mask=known)
        within = tl.maximum(within, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(deviations + part * channels + channel, within, mask=known)
        tl.store(counts + part, all_of_them)


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def _strided_grad_x(
    grad, weight, source, by_x, sums,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, MASK: tl.constexpr, SUMS: tl.constexpr,
    PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channels = channel_units * UNIT
    part, channel = place(channels, CHANNELS)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    columns = tl.zeros([PIXELS, CHANNELS], SUM)
    for tile in range(part, tiles, parts):
        image, row, column, exists = tile_pixels(tile, count, height, width, PIXELS, ROWS, FLAT)
        total = tl.zeros([PIXELS, CHANNELS], SUM)
        for down in range(K):
            output_row = row + reach - down * dilation
            inside_row = exists & (output_row >= 0) & (output_row % STRIDE == 0)
            output_row = output_row // STRIDE
            inside_row = inside_row & (output_row < height_out)
            start = (image * height_out + output_row).to(tl.int64) * width_out
            for across in tl.static_range(K):
                output_column = column + reach - across * dilation
                inside = inside_row & (output_column >= 0) & (output_column % STRIDE == 0)
                output_column = output_column // STRIDE
                inside = inside & (output_column < width_out)
                given = grad + (start + output_column)[:, None] * channels + channel[None, :]
                value = tl.load(given, mask=inside[:, None] & known[None, :], other=0.0).to(SUM)
                tap = tl.load(weight + (down * K + across) * channels + channel, mask=known, other=0.0).to(SUM)
                total += value * tap[None, :]
        position = (image * height + row).to(tl.int64) * width + column
        entry = position[:, None] * channels + channel[None, :]
        written = exists[:, None] & known[None, :]
        if MASK:
            total = tl.where(tl.load(source + entry, mask=written, other=0.0) <= 0, 0.0, total)
        rounded = total.to(by_x.dtype.element_ty)
        tl.store(by_x + entry, rounded, mask=written)
        if SUMS:
            columns += tl.where(written, rounded.to(SUM), 0.0)
    if SUMS:
        tl.store(sums + part * channels + channel, tl.sum(columns, 0), mask=known)


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def _grad_weights(
    grad, x, partial,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    COLUMNS: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """A program sums one line of the kernel over its part of the pixels, COLUMNS neighbours at a time."""
    channels = channel_units * UNIT
    number, channel = place(channels, CHANNELS)
    known = channel < channels
    down = number % K
    part = number // K
    reach = (K - 1) * dilation // 2
    anchors = tl.cdiv(width_out, COLUMNS * dilation) * dilation
    totals = ()
    for _ in tl.static_range(K):
        totals = totals + (tl.zeros([PIXELS, CHANNELS], SUM),)
    for tile in range(part, tiles, parts):
        image, row, anchor, exists = tile_pixels(tile, count, height_out, anchors, PIXELS, ROWS, FLAT)
        column = (anchor // dilation) * (COLUMNS * dilation) + anchor % dilation
        start = (image * height_out + row).to(tl.int64) * width_out + column
        outputs = grad + (start[:, None] * channels + channel[None, :])
        given = ()
        for output in tl.static_range(COLUMNS):
            there = exists & (column + output * dilation < width_out)
            value = tl.load(
                outputs + (output * dilation) * channels, mask=there[:, None] & known[None, :], other=0.0
            ).to(SUM)
            given = given + (value,)
        line = row * STRIDE - reach + down * dilation
        first_column = column * STRIDE - reach
        inside_row = exists & (line >= 0) & (line < height)
        start = (image * height + line).to(tl.int64) * width + first_column
        inputs = x + (start[:, None] * channels + channel[None, :])
        for step in tl.static_range(K + COLUMNS - 1):
            position = first_column + step * dilation
            inside = inside_row & (position >= 0) & (position < width)
            value = tl.load(
                inputs + (step * dilation) * channels, mask=inside[:, None] & known[None, :], other=0.0
            ).to(SUM)
            if RELU:
                value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
            added = ()
            for across in tl.static_range(K):
                if (step >= across) and (step - across < COLUMNS):
                    added = added + (totals[across] + value * given[step - across],)
                else:
                    added = added + (totals[across],)
            totals = added
    for across in tl.static_range(K):
        entry = (part * K * K + down * K + across) * channels + channel
        tl.store(partial + entry, tl.sum(totals[across], 0), mask=known)


def _is_flat(height: int, width: int) -> bool:
    return height * width <= FLAT_PIXELS


@dataclass(frozen=True)
class _Grid:
    """How the pixels of a convolution's output are divided among programs."""

    block: Block
    columns: int
    flat: bool
    tiles: int
    parts: int

    @classmethod
    def of(cls, family: Family, size: tuple[int, int, int], channels: int, geometry: Geometry, item_bytes: int) -> _Grid:
        """For an output of N, H, W and a number of channels."""
        count, height, width = size
        flat = _is_flat(height, width)
        block = choose_block(family, geometry.kernel_size, geometry.dilation, item_bytes, flat)
        columns = block.columns if geometry.stride == 1 else 1
        anchors = -(-width // (columns * geometry.dilation)) * geometry.dilation
        if flat:
            tiles = -(-count * height * anchors // block.pixels)
        else:
            tiles = count * -(-height // block.rows) * -(-anchors // (block.pixels // block.rows))
        lines = geometry.kernel_size if family == "grad_weights" else 1
        parts = min(tiles, max(1, PROGRAMS // (triton.cdiv(channels, block.channels) * lines)))
        return cls(block, columns, flat, tiles, parts)


def taps_outermost(weight: Tensor) -> Tensor:
    """Kernels ``[C, 1, k, k]`` as ``[k k, C]``, in which a program reads those of its channels at once."""
    return weight.flatten(1).t().contiguous()


def _stride_one(
    family: Family,
    x: Tensor,
    weight: Tensor,
    source: Tensor | None,
    geometry: Geometry,
    *,
    relu: bool,
    sums: bool,
    moments: bool,
) -> tuple[Tensor, Tensor | None, Moments | None]:
    """Launch :func:`_convolve`, whose input and output are a convolution's, or its gradients' at stride 1."""
    channels = x.shape[1]
    grid = _Grid.of(
        family, (geometry.count, geometry.height_out, geometry.width_out), channels, geometry, x.element_size()
    )
    kind = accumulation_type(x.dtype)
    y = x.new_empty(geometry.positions_out, channels)
    found = Moments.room(grid.parts, channels, geometry.positions_out, kind, x.device) if moments else None
    columns = torch.empty(grid.parts, channels, dtype=kind, device=x.device) if sums else None
    means = y if columns is None else columns
    room = (means, y, y) if found is None else (found.means, found.deviations, found.counts)
    unit = alignment(channels)
    _convolve[(triton.cdiv(channels, grid.block.channels) * grid.parts,)](
        x, weight, x if source is None else source, y, *room,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride, RELU=relu, MASK=source is not None,
        SUMS=sums, MOMENTS=moments, COLUMNS=grid.columns, PIXELS=grid.block.pixels, ROWS=grid.block.rows,
        FLAT=grid.flat, CHANNELS=grid.block.channels, SUM=triton_type(kind), num_warps=grid.block.warps,
    )  # fmt: skip
    return y, columns, found


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
    y, _, found = _stride_one("forward", x, weight, None, geometry, relu=relu, sums=False, moments=moments)
    return y, found


def grad_x(
    grad: Tensor, weight: Tensor, source: Tensor | None, geometry: Geometry, *, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradient of :func:`forward` by its input: at stride 1 the convolution with the kernels turned by 180 degrees.

    Args:
        grad: Gradient by the output, ``[P_out, C]``, contiguous.
        weight: Kernels, ``[k k, C]``.
        source: The input, ``[P, C]``, where its ReLU was convolved; else ``None``.
        geometry: Sizes.
        sums: Whether the sums of the result's columns are wanted.

    Returns:
        ``[P, C]`` of the type of ``grad``, and the sums, ``[C]``.
    """
    if geometry.stride == 1:
        by_x, columns, _ = _stride_one(
            "grad_x", grad, weight.flip(0), source, geometry, relu=False, sums=sums, moments=False
        )
        return by_x, None if columns is None else columns.sum(0)
    channels = grad.shape[1]
    size = (geometry.count, geometry.height, geometry.width)
    grid = _Grid.of("grad_x", size, channels, replace(geometry, dilation=1), grad.element_size())
    kind = accumulation_type(grad.dtype)
    by_x = grad.new_empty(geometry.positions, channels)
    columns = torch.empty(grid.parts, channels, dtype=kind, device=grad.device) if sums else None
    unit = alignment(channels)
    _strided_grad_x[(triton.cdiv(channels, grid.block.channels) * grid.parts,)](
        grad, weight, grad if source is None else source, by_x, by_x if columns is None else columns,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride, MASK=source is not None, SUMS=sums,
        PIXELS=grid.block.pixels, ROWS=grid.block.rows, FLAT=grid.flat, CHANNELS=grid.block.channels,
        SUM=triton_type(kind), num_warps=grid.block.warps,
    )  # fmt: skip
    return by_x, None if columns is None else columns.sum(0)


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
    size = (geometry.count, geometry.height_out, geometry.width_out)
    grid = _Grid.of("grad_weights", size, channels, geometry, grad.element_size())
    kind = accumulation_type(grad.dtype)
    partial = torch.empty(grid.parts, kernel_size**2, channels, dtype=kind, device=grad.device)
    unit = alignment(channels)
    _grad_weights[(triton.cdiv(channels, grid.block.channels) * kernel_size * grid.parts,)](
        grad, x, partial,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=kernel_size, STRIDE=geometry.stride, RELU=relu, COLUMNS=grid.columns,
        PIXELS=grid.block.pixels, ROWS=grid.block.rows, FLAT=grid.flat, CHANNELS=grid.block.channels,
        SUM=triton_type(kind), num_warps=grid.block.warps,
    )  # fmt: skip
    return partial.sum(0).t().reshape(channels, 1, kernel_size, kernel_size)
