"""Dense convolutions, ``conv_k{kernel}_d{dilation}``: convolution, batch normalisation, ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitdet_nni.operators.costs import Convention, Cost, Size, conv_cost, halved, norm_relu_cost
from hitdet_nni.operators.family import Operator

if TYPE_CHECKING:
    from hitdet_nni.operators.blocks import ConvBlock


def build(operator: Operator, in_channels: int, out_channels: int, stride: int) -> ConvBlock:
    """Build the block."""
    from hitdet_nni.operators.blocks import ConvBlock  # noqa: PLC0415

    return ConvBlock(in_channels, out_channels, operator.kernel_size, operator.dilation, stride)


def cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Return the cost of the convolution and what is behind it, both of the output's size."""
    output = halved(size, stride)
    return conv_cost(in_channels, out_channels, operator.kernel_size, output, convention) + norm_relu_cost(
        out_channels, output, convention, relu=True
    )
