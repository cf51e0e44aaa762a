"""Depthwise convolutions of a decided detector with the gradients that are fast for their shapes on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hitdet_nni.kernels import depthwise
from hitdet_nni.kernels.depthwise import padding


class _Convolution(torch.autograd.Function):
    """:func:`hitdet_nni.kernels.depthwise.convolve` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return depthwise.convolve(x, weight, stride, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        arguments = (grad.contiguous(memory_format=torch.channels_last), x, weight, ctx.stride, ctx.dilation)
        grad_x = depthwise.input_gradient(*arguments) if ctx.needs_input_grad[0] else None
        grad_weight = depthwise.weight_gradient(*arguments) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of a block: no bias, odd kernel, padded so that stride 1 keeps the size.

    The values are those of ``nn.Conv2d`` but for the order of sums. On other devices than a CPU, and in 16 bits, it is
    ``nn.Conv2d``.

    Shape:
        ``[N, C, H, W]`` to ``[N, C, ceil(H / stride), ceil(W / stride)]`` in channels-last order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each channel with its kernel."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        result: Tensor = _Convolution.apply(x, self.weight, self.stride[0], self.dilation[0])
        return result


def _is_of_a_block(module: nn.Conv2d) -> bool:
    """Whether rows and columns are treated alike, and zeros around the map keep its size at stride 1."""
    pairs = (module.kernel_size, module.stride, module.dilation)
    if any(rows != columns for rows, columns in pairs) or module.padding_mode != "zeros":
        return False
    size, stride, dilation = (rows for rows, _ in pairs)
    reach = padding(size, dilation)
    return size % 2 == 1 and (module.padding == (reach, reach) or (module.padding == "same" and stride == 1))


def fast_depthwise(module: nn.Module) -> nn.Module:
    """Return a :class:`DepthwiseConv2d` with the kernels of a depthwise convolution of a block; others as they are.

    For :func:`~hitdet_nni.model.replacement.replace_modules`.
    """
    if type(module) is not nn.Conv2d or module.bias is not None:
        return module
    channels = module.in_channels
    if not module.groups == channels == module.out_channels > 1 or not _is_of_a_block(module):
        return module
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    made = DepthwiseConv2d(channels, channels, *geometry, groups=channels, bias=False, device="meta")  # type: ignore[arg-type]
    made.weight = module.weight
    return made.train(module.training)
