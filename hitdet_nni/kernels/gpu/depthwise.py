"""Depthwise convolution of channels-last maps and its two gradients, each one pass over memory.

What surrounds the convolution in an inverted residual rides along: the ReLU of what comes in is applied while it is
read, the sums for the next batch normalisation are taken while the result is written. Kernel sizes are odd, padding is
``(k - 1) dilation / 2``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from hitdet_nni.kernels.gpu.launch import (
    FLAT_PIXELS,
    Block,
    Family,
    accumulation_type,
    alignment,
    choose_block,
    start,
    triton_type,
)
from hitdet_nni.kernels.gpu.moments import Moments
from hitdet_nni.kernels.gpu.programs import depthwise as programs

PROGRAMS = 2112
"""Programs of a launch, at most: enough for every GPU, few enough for little to be summed at the end."""


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
    def of(
        cls, family: Family, size: tuple[int, int, int], channels: int, geometry: Geometry, item_bytes: int
    ) -> _Grid:
        """Return the grid for an output of N, H, W and a number of channels."""
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
    """Return kernels ``[C, 1, k, k]`` as ``[k k, C]``, in which a program reads those of its channels at once."""
    return weight.flatten(1).t().contiguous()  # [C, 1, k, k] -> [k k, C]


def _launch_convolve(
    family: Family,
    x: Tensor,
    weight: Tensor,
    source: Tensor | None,
    geometry: Geometry,
    *,
    relu: bool,
    turned: bool,
    sums: bool,
    moments: bool,
) -> tuple[Tensor, Tensor | None, Moments | None]:
    """Launch ``programs.convolve``: a convolution at any stride, or its gradient by the input at stride 1."""
    channels = x.shape[1]
    grid = _Grid.of(
        family, (geometry.count, geometry.height_out, geometry.width_out), channels, geometry, x.element_size()
    )
    kind = accumulation_type(x.dtype)
    y = x.new_empty(geometry.positions_out, channels)
    found = Moments.allocate(grid.parts, channels, geometry.positions_out, kind, x.device) if moments else None
    columns = torch.empty(grid.parts, channels, dtype=kind, device=x.device) if sums else None
    means = y if columns is None else columns
    buffers = (means, y, y) if found is None else (found.means, found.deviations, found.counts)
    unit = alignment(channels)
    start(
        programs.convolve, (triton.cdiv(channels, grid.block.channels) * grid.parts,),
        x, weight, x if source is None else source, y, *buffers,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride, RELU=relu, MASK=source is not None,
        TURNED=turned, SUMS=sums, MOMENTS=moments, COLUMNS=grid.columns, PIXELS=grid.block.pixels,
        ROWS=grid.block.rows, FLAT=grid.flat, CHANNELS=grid.block.channels, SUM=triton_type(kind),
        num_warps=grid.block.warps,
    )  # fmt: skip
    return y, columns, found


def forward(
    x: Tensor, weight: Tensor, geometry: Geometry, *, relu: bool, moments: bool
) -> tuple[Tensor, Moments | None]:
    """Convolve each channel of ``x``, or of its ReLU, with its kernel.

    Args:
        x: Input, ``[P, C]``, contiguous.
        weight: Kernels, ``[k k, C]`` (:func:`taps_outermost`).
        geometry: Sizes.
        relu: Whether the ReLU of ``x`` is convolved.
        moments: Whether mean and variance of the output's columns are wanted.

    Returns:
        ``[P_out, C]`` of the type of ``x``, and the moments of its parts.
    """
    y, _, found = _launch_convolve(
        "forward", x, weight, None, geometry, relu=relu, turned=False, sums=False, moments=moments
    )
    return y, found


def grad_x(
    grad: Tensor, weight: Tensor, source: Tensor | None, geometry: Geometry, *, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of :func:`forward` by its input: at stride 1 that with kernels turned by 180 degrees.

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
        gradient, columns, _ = _launch_convolve(
            "grad_x", grad, weight, source, geometry, relu=False, turned=True, sums=sums, moments=False
        )
        return gradient, None if columns is None else columns.sum(0)
    channels = grad.shape[1]
    size = (geometry.count, geometry.height, geometry.width)
    grid = _Grid.of("grad_x", size, channels, replace(geometry, dilation=1), grad.element_size())
    kind = accumulation_type(grad.dtype)
    gradient = grad.new_empty(geometry.positions, channels)
    columns = torch.empty(grid.parts, channels, dtype=kind, device=grad.device) if sums else None
    unit = alignment(channels)
    start(
        programs.strided_grad_x, (triton.cdiv(channels, grid.block.channels) * grid.parts,),
        grad, weight, grad if source is None else source, gradient, gradient if columns is None else columns,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=geometry.kernel_size, STRIDE=geometry.stride, MASK=source is not None, SUMS=sums,
        PIXELS=grid.block.pixels, ROWS=grid.block.rows, FLAT=grid.flat, CHANNELS=grid.block.channels,
        SUM=triton_type(kind), num_warps=grid.block.warps,
    )  # fmt: skip
    return gradient, None if columns is None else columns.sum(0)


def grad_weights(grad: Tensor, x: Tensor, geometry: Geometry, *, relu: bool) -> Tensor:
    """Return the gradient of :func:`forward` by its kernels.

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
    start(
        programs.grad_weights, (triton.cdiv(channels, grid.block.channels) * kernel_size * grid.parts,),
        grad, x, partial,
        geometry.count, geometry.height, geometry.width, geometry.height_out, geometry.width_out, channels // unit,
        geometry.dilation, grid.tiles, grid.parts,
        UNIT=unit, K=kernel_size, STRIDE=geometry.stride, RELU=relu, COLUMNS=grid.columns,
        PIXELS=grid.block.pixels, ROWS=grid.block.rows, FLAT=grid.flat, CHANNELS=grid.block.channels,
        SUM=triton_type(kind), num_warps=grid.block.warps,
    )  # fmt: skip
    taps = partial.transpose(1, 2).sum(0)  # [parts, k k, C] -> [C, k k]: laid out as parameters, for one copy of many
    return taps.reshape(channels, 1, kernel_size, kernel_size)  # [C, k k] -> [C, 1, k, k]
