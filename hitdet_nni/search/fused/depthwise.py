"""Depthwise convolution and its two gradients, each by the algorithm that is fast for its shape.

All algorithms are exact; they differ in the order of their sums. Which one runs is a function of shapes and of the kind
of device alone, never of a measurement, so that a run resumed in another process rounds as an uninterrupted one.

On a CPU, ATen hands depthwise convolutions in channels-last order to oneDNN, whose forward pass is fast but for
dilated kernels that reach more than four pixels over the edge, and whose weight gradient is fast for undilated 3 x 3
kernels only; ATen's own loops, which take the rest, are 10 to 100 times slower. On a GPU, cuDNN takes what is in
channels-last order; dilated kernels and the weight gradient of 7 x 7 ones are 3 to 200 times slower there. Figures:
docs/fused.md.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hitdet_nni.search.fused.layout import channels_last, deinterleave, interleave

ONEDNN_REACH = 4
"""Pixels that oneDNN's dilated depthwise kernel may reach over the edge before a slow kernel replaces it."""

TOEPLITZ_PIXELS = 64
"""Largest map (rows x columns) whose weight gradient is taken as one product of matrices a channel."""

TOEPLITZ_MAPS = 48
"""Fewest maps in a batch for that, since it computes all products of two pixels whatever their number."""

INTERLEAVE_PIXELS = 256
"""Smallest map whose weight gradient by a dilated 3 x 3 kernel is taken from its subsampled maps on a CPU."""

CUDNN_KERNEL = 5
"""Largest kernel whose weight gradient cuDNN computes fast in single precision and channels-last order."""


def padding(kernel_size: int, dilation: int) -> int:
    """Padding with which a stride-1 convolution keeps the size of its input."""
    return (kernel_size - 1) * dilation // 2


def convolve(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Depthwise convolution.

    Args:
        x: Input in channels-last order, ``[N, C, H, W]``.
        weight: Kernels, ``[C, 1, k, k]``, k odd.
        stride: Stride of both directions.
        dilation: Dilation of both directions.

    Returns:
        ``[N, C, ceil(H / stride), ceil(W / stride)]`` in channels-last order.
    """
    if x.device.type != "cpu" and dilation > 1:
        if stride == 1:
            return deinterleave(convolve(interleave(x, dilation), weight, 1, 1), dilation, *x.shape[2:])
        x = x.contiguous()  # keeps cuDNN away
    reach = padding(weight.shape[-1], dilation)
    if x.device.type == "cpu" and dilation > 1 and reach > ONEDNN_REACH:
        x, reach = _pad(x, reach - ONEDNN_REACH), ONEDNN_REACH
    return channels_last(F.conv2d(x, weight, None, stride, reach, dilation, weight.shape[0]))


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Gradient of :func:`convolve` by its input.

    At stride 1 it is the convolution of ``grad`` with the kernels turned by 180 degrees. At a larger stride zeros
    between the gradient's pixels make it that.

    Args:
        grad: Gradient by the output, channels-last.
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
    """Gradient of :func:`convolve` by its kernels, ``[C, 1, k, k]``.

    Args:
        grad: Gradient by the output, channels-last.
        x: The input, channels-last.
        weight: The kernels; only their shape is used.
        stride: Stride of the forward pass.
        dilation: Dilation of the forward pass.
    """
    kernel_size = weight.shape[-1]
    on_cpu, pixels = x.device.type == "cpu", x.shape[2] * x.shape[3]
    exact = x.dtype in (torch.float32, torch.float64)
    fast = 3 if on_cpu else CUDNN_KERNEL if exact else kernel_size
    if dilation == 1 and kernel_size <= fast:
        return _aten_gradient(grad, x, weight, stride, dilation, of_input=False)
    if pixels <= TOEPLITZ_PIXELS and len(x) >= TOEPLITZ_MAPS:
        return _toeplitz_weight_gradient(grad, x, kernel_size, stride, dilation)
    if not on_cpu and (stride > 1 or dilation == 1):
        return _aten_gradient(grad.contiguous(), x.contiguous(), weight, stride, dilation, of_input=False)
    if not on_cpu or (kernel_size <= fast and stride == 1 and pixels >= INTERLEAVE_PIXELS):
        return _aten_gradient(interleave(grad, dilation), interleave(x, dilation), weight, 1, 1, of_input=False)
    return _correlate(grad, x, kernel_size, stride, dilation)


def _aten_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, *, of_input: bool) -> Tensor:
    reach = [padding(weight.shape[-1], dilation)] * 2
    wanted = [of_input, not of_input, False]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, reach, [dilation] * 2, False, [0, 0], weight.shape[0], wanted
    )
    gradient: Tensor = gradients[0 if of_input else 1]
    return gradient


def _pad(x: Tensor, margin: int) -> Tensor:
    """Surround a channels-last map with zeros."""
    count, channels, height, width = x.shape
    padded = x.new_zeros(count, height + 2 * margin, width + 2 * margin, channels).permute(0, 3, 1, 2)
    padded[:, :, margin : margin + height, margin : margin + width] = x
    return padded


def _correlate(grad: Tensor, x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Weight gradient as a forward pass: each map is convolved with its own gradient for a kernel.

    In this the stride of the forward pass is the dilation and its dilation the stride. All maps of the batch are
    channels of one map.
    """
    count, channels, height, width = x.shape
    side_by_side = x.permute(2, 3, 0, 1).reshape(1, height, width, count * channels).permute(0, 3, 1, 2)
    kernels = grad.reshape(count * channels, 1, *grad.shape[2:])
    reach = padding(kernel_size, dilation)
    products = F.conv2d(side_by_side, kernels, None, dilation, reach, stride, count * channels)
    gradient = products[0, :, :kernel_size, :kernel_size].reshape(count, channels, kernel_size, kernel_size).sum(0)
    return gradient.unsqueeze(1)


def _toeplitz_weight_gradient(grad: Tensor, x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    """Weight gradient of small maps: all products of output and input pixels, then the sum of those a tap joins.

    A channel's convolution is a (Toeplitz) matrix ``[H_out W_out, H W]``. The matrix's gradient is one product over the
    batch; an entry of the kernel occurs at the places where ``_taps`` is one.
    """
    _, channels, height, width = x.shape
    taps = _taps(height, width, kernel_size, stride, dilation, x.dtype, x.device)
    matrix_gradient = torch.bmm(_pixels_outermost(grad), _pixels_outermost(x).transpose(1, 2))
    gradient = matrix_gradient.view(channels, -1) @ taps
    return gradient.view(channels, 1, kernel_size, kernel_size)


def _pixels_outermost(x: Tensor) -> Tensor:
    """A channels-last map as ``[C, H W, N]`` whose memory is ``[H W, C, N]``, which takes one plain transposition."""
    count, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(count, height * width * channels)
    return rows.t().contiguous().view(height * width, channels, count).transpose(0, 1)


@lru_cache(maxsize=64)
def _taps(
    height: int, width: int, kernel_size: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Which tap joins an output and an input pixel: zeros and ones, ``[H_out W_out H W, k k]``."""

    def along(size: int) -> Tensor:  # [size_out, size, k]
        outputs = torch.arange(-(-size // stride)).view(-1, 1, 1) * stride
        offsets = torch.arange(kernel_size) * dilation - padding(kernel_size, dilation)
        return torch.eq(torch.arange(size).view(1, -1, 1) - outputs, offsets).to(dtype)

    joined = torch.einsum("aik,bjl->abijkl", along(height), along(width))
    return joined.reshape(-1, kernel_size**2).to(device)
