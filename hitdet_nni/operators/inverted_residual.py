"""Inverted residuals ``ir_k{kernel}_d{dilation}_e{expansion}``: 1x1 expansion, depthwise convolution, projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitdet_nni.operators import separable
from hitdet_nni.operators.costs import Convention, Cost, Size, conv_cost, norm_relu_cost
from hitdet_nni.operators.family import Operator

if TYPE_CHECKING:
    from hitdet_nni.operators.blocks import InvertedResidual


def build(operator: Operator, in_channels: int, out_channels: int, stride: int) -> InvertedResidual:
    """Build the block."""
    from hitdet_nni.operators.blocks import InvertedResidual  # noqa: PLC0415

    kernel_size, dilation = operator.kernel_size, operator.dilation
    return InvertedResidual(in_channels, out_channels, kernel_size, dilation, operator.expansion, stride)


def cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Return the cost: an expansion of the input's size, and a separable block of the hidden channels."""
    hidden = in_channels * operator.expansion
    expansion = conv_cost(in_channels, hidden, 1, size, convention) + norm_relu_cost(
        hidden, size, convention, relu=True
    )
    return expansion + separable.cost(operator, hidden, out_channels, stride, size, convention)
