"""Gradients of the dense k x k convolution, by the algorithm that is fast for its shape.

As with :mod:`hitdet_nni.search.fused.depthwise`, the choice depends on shapes and the kind of device alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hitdet_nni.search.fused.depthwise import padding
from hitdet_nni.search.fused.layout import channels_last, deinterleave, interleave
from hitdet_nni.search.fused.spectral import SpectralConvolution, Tiling, choose_tiling

SMALL_MAP_PIXELS = 100
"""Largest map whose weight gradient is computed tap by tap: there much of a kernel lies over the edge."""

EXACT_TYPES = (torch.float32, torch.float64)
"""Types of maps that may be transformed: the transforms' sums would round 16-bit numbers once more."""

TAP_PRODUCTS = 2**22
"""Multiply-adds that one product of the tap-by-tap algorithm must have at least, or calls outweigh work."""


def convolve(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Convolution of ``[N, C_in, H, W]`` with ``[C_out, C_in, k, k]``, padded to ``ceil(H / stride)`` rows.

    The result is in channels-last order.
    """
    tiling = _tiling(x, weight, stride, dilation)
    if tiling is None:
        return channels_last(F.conv2d(x, weight, None, stride, padding(weight.shape[-1], dilation), dilation))
    undilated = interleave(x, dilation) if dilation > 1 else x
    y = SpectralConvolution(tiling, weight).convolve(undilated)
    return deinterleave(y, dilation, *x.shape[2:]) if dilation > 1 else y


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, *, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve` by its input and its kernels; ``None`` where not asked for."""
    by_input = by_weight = None
    tiling = _tiling(x, weight, stride, dilation)
    if tiling is not None and (of_input or of_weight):
        undilated = [interleave(maps, dilation) if dilation > 1 else maps for maps in (grad, x)]
        by_input, by_weight = SpectralConvolution(tiling, weight).gradients(
            *undilated, of_input=of_input, of_weight=of_weight
        )
        if by_input is not None and dilation > 1:
            by_input = deinterleave(by_input, dilation, *x.shape[2:])
        return by_input, by_weight
    by_taps = of_weight and _taps_pay(x, weight, stride)
    reach = [padding(weight.shape[-1], dilation)] * 2
    wanted = [of_input, of_weight and not by_taps, False]
    if any(wanted):
        by_input, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride] * 2, reach, [dilation] * 2, False, [0, 0], 1, wanted
        )
    if by_taps:
        by_weight = _weight_gradient_by_taps(grad, x, weight, dilation)
    return by_input, by_weight


def _tiling(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tiling | None:
    """How the maps, or their subsampled maps, are cut where the convolution theorem needs the fewest products."""
    out_channels, in_channels, kernel_size, _ = weight.shape
    if x.device.type != "cpu" or x.dtype not in EXACT_TYPES or stride > 1 or kernel_size == 1:
        return None
    count, height, width = len(x) * dilation**2, -(-x.shape[2] // dilation), -(-x.shape[3] // dilation)
    return choose_tiling(count, height, width, in_channels, out_channels, kernel_size)


def _taps_pay(x: Tensor, weight: Tensor, stride: int) -> bool:
    count, _, height, width = x.shape
    out_channels, in_channels, kernel_size, _ = weight.shape
    return (
        x.device.type == "cpu"
        and stride == 1
        and kernel_size > 1
        and height * width <= SMALL_MAP_PIXELS
        and count * width * out_channels * in_channels >= TAP_PRODUCTS
    )


@dataclass(frozen=True)
class _Tap:
    """One entry of a kernel: its index, and the part of a line of outputs whose input is inside the map."""

    index: int
    offset: int
    inside: slice

    @property
    def inputs(self) -> slice:
        return slice(self.inside.start + self.offset, self.inside.stop + self.offset)


def _taps_inside(size: int, kernel_size: int, dilation: int) -> Iterator[_Tap]:
    reach = padding(kernel_size, dilation)
    for index in range(kernel_size):
        offset = index * dilation - reach
        inside = slice(max(0, -offset), min(size, size - offset))
        if inside.start < inside.stop:
            yield _Tap(index, offset, inside)


def _weight_gradient_by_taps(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Weight gradient as one product of matrices a tap and line, over those pixels only that the tap joins.

    With the batch inside the columns, the pixels of a line that a tap joins are consecutive rows of a matrix.
    """
    out_channels, in_channels, kernel_size, _ = weight.shape
    height, width = x.shape[2:]
    grad = grad.permute(2, 3, 0, 1).contiguous()  # [H, W, N, C]
    x = x.permute(2, 3, 0, 1).contiguous()
    gradient = x.new_zeros(kernel_size, kernel_size, out_channels, in_channels)
    for vertical in _taps_inside(height, kernel_size, dilation):
        for horizontal in _taps_inside(width, kernel_size, dilation):
            entry = gradient[vertical.index, horizontal.index]
            for row in range(vertical.inside.start, vertical.inside.stop):
                grad_rows = grad[row, horizontal.inside].view(-1, out_channels)
                input_rows = x[row + vertical.offset, horizontal.inputs].view(-1, in_channels)
                entry.addmm_(grad_rows.t(), input_rows)
    return gradient.permute(2, 3, 0, 1)
