"""The dense k x k convolution and its gradients, by the algorithm that is fast for its shape.

As with :mod:`hitdet_nni.kernels.depthwise`, the choice depends on shapes and the kind of device alone. Maps are
``[N, C, H, W]`` with their pixels in any order; the order of a result is the one that its algorithm gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hitdet_nni.kernels.depthwise import padding
from hitdet_nni.kernels.layout import channels_last
from hitdet_nni.kernels.products import correlate
from hitdet_nni.kernels.spectral import SpectralConvolution, Tiling, choose_tiling

EXACT_TYPES = (torch.float32, torch.float64)
"""Types of maps that may be transformed: the transforms' sums would round 16-bit numbers once more."""

FEW_PIXELS = 2
"""Pixels of a batch, as a multiple of its channels, up to which ATen's weight gradient of undilated kernels is slower
than products by lines on a CPU: it brings as many kernels as there are pairs of channels into another order."""


def convolve(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Convolve ``[N, C_in, H, W]`` with ``[C_out, C_in, k, k]``, padded to ``ceil(H / stride)`` rows."""
    tiling = _tiling(x, weight, stride, dilation)
    if tiling is not None:
        return SpectralConvolution(tiling, weight, dilation).convolve(x)
    return F.conv2d(channels_last(x), weight, None, stride, padding(weight.shape[-1], dilation), dilation)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, *, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of :func:`convolve` by its input and its kernels; ``None`` where not asked for."""
    tiling = _tiling(x, weight, stride, dilation)
    if tiling is not None:
        return SpectralConvolution(tiling, weight, dilation).gradients(grad, x, of_input=of_input, of_weight=of_weight)
    grad_input = grad_weight = None
    by_lines = of_weight and x.device.type == "cpu" and (dilation > 1 or x[:, 0].numel() <= FEW_PIXELS * x.shape[1])
    wanted = [of_input, of_weight and not by_lines, False]
    if any(wanted):
        reach, maps = padding(weight.shape[-1], dilation), (channels_last(grad), channels_last(x))
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
            *maps, weight, None, [stride] * 2, [reach] * 2, [dilation] * 2, False, [0, 0], 1, wanted
        )
    if by_lines:
        grad_weight = _weight_gradient_by_lines(grad, x, weight.shape[-1], stride, dilation)
    return grad_input, grad_weight


def _tiling(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tiling | None:
    """Return how the maps, or their subsampled maps, are cut for the fewest products; ``None`` for no gain."""
    out_channels, in_channels, kernel_size, _ = weight.shape
    if x.device.type != "cpu" or x.dtype not in EXACT_TYPES or stride > 1 or kernel_size == 1:
        return None
    return choose_tiling(len(x), *x.shape[2:], in_channels, out_channels, kernel_size, dilation)


def _weight_gradient_by_lines(grad: Tensor, x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Compute the weight gradient as one product of matrices a line of the kernel, over the pixels that it joins.

    A window holds the ``k`` input pixels of a row that a line of the kernel reads for an output. With the maps' rows
    alternating, those that lie inside the map for a line are consecutive.
    """
    height, reach = x.shape[2], padding(kernel_size, dilation)
    rows = F.pad(x.permute(2, 0, 3, 1), (0, 0, reach, reach))  # [N, C_in, H, W] -> [H, N, W + 2 reach, C_in]
    windows = rows.unfold(2, 2 * reach + 1, stride)[..., ::dilation]
    windows = windows.transpose(3, 4).flatten(3)  # [H, N, W_out, C_in, k] -> [H, N, W_out, k C_in]
    grad = grad.permute(2, 0, 3, 1).contiguous()  # [N, C_out, H_out, W_out] -> [H_out, N, W_out, C_out]
    width, channels = windows.shape[-1], grad.shape[-1]
    gradient = x.new_zeros(kernel_size, channels, width)
    for line, offset in enumerate(range(-reach, reach + 1, dilation)):
        first, end = max(0, -(offset // stride)), min(len(grad), -((offset - height) // stride))
        if first < end:
            inputs = windows[first * stride + offset :: stride][: end - first]
            outputs = grad[first:end].view(-1, channels)  # [rows, N, W_out, C_out] -> [rows N W_out, C_out]
            inputs = inputs.reshape(-1, width)  # [rows, N, W_out, k C_in] -> [rows N W_out, k C_in]
            correlate(gradient[line], outputs, inputs)
    lines = gradient.view(kernel_size, channels, kernel_size, -1)  # [k, C_out, k C_in] -> [k, C_out, k, C_in]
    return lines.permute(1, 3, 0, 2)  # [k, C_out, k, C_in] -> [C_out, C_in, k, k]
