"""Depthwise convolution and its two gradients, each by the algorithm that is fast for its shape.

All algorithms are exact; they differ in the order of their sums. Which one runs is a function of shapes and of the kind
of device alone, never of a measurement, so that a run resumed in another process rounds as an uninterrupted one.

On a CPU, ATen hands depthwise convolutions in channels-last order to oneDNN, whose forward pass is fast but for
dilated kernels that reach more than four columns over the edge, and whose weight gradient is fast for undilated 3 x 3
kernels only; ATen's own loops, which take the rest, are 10 to 100 times slower. Of its two forward passes the one for
dilated kernels is the faster, and where the maps' rows alternate every convolution is dilated. On a GPU, cuDNN takes
what is in channels-last order; dilated kernels and the weight gradient of 7 x 7 ones are 3 to 200 times slower there.
Figures: docs/fused.md.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hitdet_nni.kernels.layout import (
    batch_to_space,
    channels_last,
    goes_by_rows,
    one_map,
    several_maps,
    space_to_batch,
)

ONEDNN_REACH = 4
"""Columns that oneDNN's dilated depthwise kernel may reach over the edge before a slow kernel replaces it."""

TOEPLITZ_PIXELS = 64
"""Largest map (rows x columns) whose weight gradient is taken as one product of matrices a channel on a GPU."""

TOEPLITZ_MAPS = 48
"""Fewest maps in a batch for that, since it computes all products of two pixels whatever their number."""

INTERLEAVE_PIXELS = 256
"""Smallest map whose weight gradient by a dilated 3 x 3 kernel is taken from its subsampled maps on a CPU."""

MANY_PIXELS = 4096
"""Pixels of a batch from which the weight gradient is computed in pieces on a CPU: each line of a kernel reads all."""

PIECE_CHANNELS = 16
"""Channels of such a piece; it is to stay in the cache."""

CUDNN_KERNEL = 5
"""Largest kernel whose weight gradient cuDNN computes fast in single precision and channels-last order."""


def padding(kernel_size: int, dilation: int) -> int:
    """Return the padding with which a stride-1 convolution keeps the size of its input."""
    return (kernel_size - 1) * dilation // 2


def convolve(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Convolve each channel with its kernel.

    Args:
        x: Input, ``[N, C, H, W]``, channels-last, its pixels ordered map by map or row by row.
        weight: Kernels, ``[C, 1, k, k]``, k odd.
        stride: Stride of both directions.
        dilation: Dilation of both directions.

    Returns:
        ``[N, C, ceil(H / stride), ceil(W / stride)]``, channels-last, in the order of the input where the stride is 1.
    """
    if x.device.type == "cpu":
        if stride == 1 and goes_by_rows(x):
            return several_maps(_convolve(one_map(x), weight, 1, (len(x) * dilation, dilation)), len(x))
        return _convolve(channels_last(x), weight, stride, (dilation, dilation))
    reach = padding(weight.shape[-1], dilation)
    if dilation > 1:
        if stride == 1:
            return batch_to_space(convolve(space_to_batch(x, dilation), weight, 1, 1), dilation, *x.shape[2:])
        x = x.contiguous()  # keeps cuDNN away
    return channels_last(F.conv2d(x, weight, None, stride, reach, dilation, weight.shape[0]))


def _convolve(x: Tensor, weight: Tensor, stride: int, dilation: tuple[int, int]) -> Tensor:
    """Convolve on a CPU, with a dilation of rows and one of columns."""
    rows, columns = (padding(weight.shape[-1], one) for one in dilation)
    inside = columns if dilation == (1, 1) else min(columns, ONEDNN_REACH)
    x = _widen(x, columns - inside)
    return channels_last(F.conv2d(x, weight, None, stride, (rows, inside), dilation, weight.shape[0]))


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Return the gradient of :func:`convolve` by its input.

    At stride 1 it is the convolution of ``grad`` with the kernels turned by 180 degrees. At a larger stride zeros
    between the gradient's pixels make it that.

    Args:
        grad: Gradient by the output, channels-last, in the order of the input where the stride is 1.
        x: The input; only its shape and order are used.
        weight: Kernels, ``[C, 1, k, k]``.
        stride: Stride of the forward pass.
        dilation: Dilation of the forward pass.
    """
    if stride > 1 and dilation == 1:
        return channels_last(_aten_gradient(grad, x, weight, stride, dilation, of_input=True))
    if stride > 1 and x.device.type != "cpu":
        of_input = _aten_gradient(grad.contiguous(), x.contiguous(), weight, stride, dilation, of_input=True)
        return channels_last(of_input)
    if stride > 1:
        spread = torch.zeros_like(x)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return convolve(grad, weight.flip(2, 3), 1, dilation)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Return the gradient of :func:`convolve` by its kernels, ``[C, 1, k, k]``.

    Args:
        grad: Gradient by the output, channels-last, its pixels ordered map by map or row by row.
        x: The input, in the same order.
        weight: The kernels; only their shape is used.
        stride: Stride of the forward pass.
        dilation: Dilation of the forward pass.
    """
    kernel_size, pixels = weight.shape[-1], x.shape[2] * x.shape[3]
    if not len(x):
        return torch.zeros_like(weight)
    if x.device.type == "cpu":
        if kernel_size > 3 or (dilation > 1 and (stride > 1 or pixels < INTERLEAVE_PIXELS)):
            if stride == 1:
                return _correlate_rows(grad, x, kernel_size, dilation)
            return _correlate_maps(grad, x, kernel_size, stride, dilation)
        if dilation == 1:
            return _aten_gradient(channels_last(grad), channels_last(x), weight, stride, 1, of_input=False)
    else:
        exact = x.dtype in (torch.float32, torch.float64)
        if dilation == 1 and (kernel_size <= CUDNN_KERNEL or not exact):
            return _aten_gradient(grad, x, weight, stride, 1, of_input=False)
        if pixels <= TOEPLITZ_PIXELS and len(x) >= TOEPLITZ_MAPS:
            return _toeplitz_weight_gradient(grad, x, kernel_size, stride, dilation)
        if stride > 1 or dilation == 1:
            return _aten_gradient(grad.contiguous(), x.contiguous(), weight, stride, dilation, of_input=False)
    return _aten_gradient(space_to_batch(grad, dilation), space_to_batch(x, dilation), weight, 1, 1, of_input=False)


def _aten_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, *, of_input: bool) -> Tensor:
    reach = [padding(weight.shape[-1], dilation)] * 2
    wanted = [of_input, not of_input, False]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, reach, [dilation] * 2, False, [0, 0], weight.shape[0], wanted
    )
    gradient: Tensor = gradients[0 if of_input else 1]
    return gradient


def _widen(x: Tensor, margin: int) -> Tensor:
    """Return a channels-last map with columns of zeros to its left and right; itself where there are none."""
    if margin == 0:
        return x
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, margin, margin))  # [N, C, H, W] -> [N, H, W + 2 margin, C]
    return rows.permute(0, 3, 1, 2)  # [N, H, W + 2 margin, C] -> [N, C, H, W + 2 margin]


def _correlate_rows(grad: Tensor, x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Compute the weight gradient at stride 1 as a forward pass: the gradient for a kernel convolves the maps.

    The dilation is the stride of that. The rows of all maps are those of one, so that it sums over the batch.
    """
    count, channels, height, width = x.shape
    reach = padding(kernel_size, dilation)
    steps, edge = (count * dilation, dilation), (count * reach, reach)
    piece = channels if count * height * width < MANY_PIXELS else PIECE_CHANNELS
    matrix = one_map(grad).permute(0, 2, 3, 1).reshape(-1, channels)  # [1, C, H N, W] -> [H N W, C]
    # ATen copies matrices faster than maps.
    kernels = matrix.t().contiguous().view(channels, 1, -1, width)  # [H N W, C] -> [C, 1, H N, W]
    pieces = zip(torch.split(one_map(x), piece, 1), torch.split(kernels, piece), strict=True)
    gradients = [F.conv2d(maps, given, None, steps, edge, 1, len(given))[0] for maps, given in pieces]
    return torch.cat(gradients).unsqueeze(1)


def _correlate_maps(grad: Tensor, x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Compute the same at any stride: each map is convolved with its own gradient, all maps being channels of one.

    The dilation is the stride of that, the stride its dilation.
    """
    count, channels, height, width = x.shape
    reach = padding(kernel_size, dilation)
    inside = min(reach, ONEDNN_REACH)
    pixels = x.permute(2, 3, 0, 1)  # [N, C, H, W] -> [H, W, N, C]
    side_by_side = pixels.reshape(1, height, width, count * channels)  # [H, W, N, C] -> [1, H, W, N C]
    side_by_side = side_by_side.permute(0, 3, 1, 2)  # [1, H, W, N C] -> [1, N C, H, W]
    kernels = grad.reshape(count * channels, 1, *grad.shape[2:])  # [N, C, H_out, W_out] -> [N C, 1, H_out, W_out]
    side_by_side = _widen(side_by_side, reach - inside)
    products = F.conv2d(side_by_side, kernels, None, dilation, (reach, inside), stride, count * channels)
    gradients = products[0, :, :kernel_size, :kernel_size]
    gradients = gradients.reshape(count, channels, kernel_size, kernel_size)  # [N C, k, k] -> [N, C, k, k]
    return gradients.sum(0).unsqueeze(1)


def _toeplitz_weight_gradient(grad: Tensor, x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Compute the weight gradient of small maps: all products of pixels, then the sum of those that a tap joins.

    A channel's convolution is a (Toeplitz) matrix ``[H_out W_out, H W]``. The matrix's gradient is one product over the
    batch; an entry of the kernel occurs at the positions where ``_taps`` is one.
    """
    _, channels, height, width = x.shape
    taps = _taps(height, width, kernel_size, stride, dilation, x.dtype, x.device)
    inputs = _pixels_outermost(x).transpose(1, 2)  # [C, H W, N] -> [C, N, H W]
    matrix_gradient = torch.bmm(_pixels_outermost(grad), inputs)
    gradient = matrix_gradient.view(channels, -1) @ taps  # [C, H_out W_out, H W] -> [C, H_out W_out H W]
    return gradient.view(channels, 1, kernel_size, kernel_size)  # [C, k k] -> [C, 1, k, k]


def _pixels_outermost(x: Tensor) -> Tensor:
    """Return a channels-last map as ``[C, H W, N]`` with memory ``[H W, C, N]``: one plain transposition."""
    count, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(count, height * width * channels)  # [N, C, H, W] -> [N, H W C]
    pixels = rows.t().contiguous().view(height * width, channels, count)  # [N, H W C] -> [H W, C, N]
    return pixels.transpose(0, 1)  # [H W, C, N] -> [C, H W, N]


@lru_cache(maxsize=64)
def _taps(
    height: int, width: int, kernel_size: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return which tap joins an output and an input pixel: zeros and ones, ``[H_out W_out H W, k k]``."""

    def along(size: int) -> Tensor:  # [size_out, size, k]
        outputs = torch.arange(-(-size // stride)).view(-1, 1, 1) * stride  # [size_out] -> [size_out, 1, 1]
        offsets = torch.arange(kernel_size) * dilation - padding(kernel_size, dilation)
        inputs = torch.arange(size).view(1, -1, 1)  # [size] -> [1, size, 1]
        return torch.eq(inputs - outputs, offsets).to(dtype)

    joined = torch.einsum("aik,bjl->abijkl", along(height), along(width))
    taps = joined.reshape(-1, kernel_size**2)  # [H_out, W_out, H, W, k, k] -> [H_out W_out H W, k k]
    return taps.to(device)
