"""The three building blocks behind the operator names (Figure 2).

Every block pads by ``(kernel_size - 1) * dilation / 2``, so its output has height and width ``ceil(size / stride)``
whatever its kernel, and uses batch normalisation after each convolution and ReLU as the activation.
"""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    relu: bool,
) -> nn.Sequential:
    """Build a convolution without bias, batch normalisation and, where asked for, ReLU.

    Shape:
        ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """
    padding = (kernel_size - 1) * dilation // 2
    block = nn.Sequential()
    block.add_module(
        "conv",
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
    )
    block.add_module("bn", nn.BatchNorm2d(out_channels))
    if relu:
        block.add_module("relu", nn.ReLU(inplace=True))
    return block


class InvertedResidual(nn.Module):
    """1x1 expansion, k x k depthwise convolution, 1x1 projection; the input is added where the shapes agree.

    There is no activation after the projection or the addition; the stride sits on the depthwise convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel, odd.
        dilation: Dilation of the depthwise kernel.
        expansion: Ratio of hidden to input channels.
        stride: 1 or 2.

    Source:
        Section 3.2 and Figure 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, expansion: int, stride: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = conv_bn(in_channels, hidden, relu=True)
        self.depthwise = conv_bn(
            hidden, hidden, kernel_size, stride=stride, dilation=dilation, groups=hidden, relu=True
        )
        self.project = conv_bn(hidden, out_channels, relu=False)
        self.residual = in_channels == out_channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class SeparableBlock(nn.Module):
    """k x k depthwise convolution and 1x1 projection; the input is added where the shapes agree.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel, odd.
        dilation: Dilation of the depthwise kernel.
        stride: 1 or 2.

    Source:
        Section 3.2 and Figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(
            in_channels, in_channels, kernel_size, stride=stride, dilation=dilation, groups=in_channels, relu=True
        )
        self.project = conv_bn(in_channels, out_channels, relu=False)
        self.residual = in_channels == out_channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        y: Tensor = self.project(self.depthwise(x))
        return x + y if self.residual else y


class ConvBlock(nn.Module):
    """Dense k x k convolution, batch normalisation, ReLU; never a residual addition.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        dilation: Dilation of the kernel.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, stride: int) -> None:
        super().__init__()
        self.block = conv_bn(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        y: Tensor = self.block(x)
        return y
