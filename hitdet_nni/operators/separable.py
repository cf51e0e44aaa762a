"""Separable blocks, ``sep_k{kernel}_d{dilation}``: depthwise convolution and 1x1 projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitdet_nni.operators.costs import Convention, Cost, Size, conv_cost, halved, norm_relu_cost
from hitdet_nni.operators.family import Operator

if TYPE_CHECKING:
    from hitdet_nni.operators.blocks import SeparableBlock


def build(operator: Operator, in_channels: int, out_channels: int, stride: int) -> SeparableBlock:
    """Build the block."""
    from hitdet_nni.operators.blocks import SeparableBlock  # noqa: PLC0415

    return SeparableBlock(in_channels, out_channels, operator.kernel_size, operator.dilation, stride)


def cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Return the cost: both convolutions of the output's size."""
    output = halved(size, stride)
    depthwise = conv_cost(in_channels, in_channels, operator.kernel_size, output, convention, groups=in_channels)
    projection = conv_cost(in_channels, out_channels, 1, output, convention)
    return (
        depthwise
        + norm_relu_cost(in_channels, output, convention, relu=True)
        + projection
        + norm_relu_cost(out_channels, output, convention, relu=False)
    )
