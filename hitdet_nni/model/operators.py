"""The module that each operator name stands for."""

from __future__ import annotations

from torch import nn

from hitdet_nni.config.operators import parse_operator
from hitdet_nni.model.blocks import ConvBlock, InvertedResidual, SeparableBlock


def build_operator(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build the module that an operator name stands for.

    Args:
        name: Operator name, e.g. ``"ir_k5_d1_e6"``.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.

    Shape:
        ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Raises:
        InputError: If the name is not of the grammar.
    """
    operator = parse_operator(name)
    kernel_size, dilation = operator.kernel_size, operator.dilation
    if operator.family == "ir":
        return InvertedResidual(in_channels, out_channels, kernel_size, dilation, operator.expansion, stride)
    if operator.family == "sep":
        return SeparableBlock(in_channels, out_channels, kernel_size, dilation, stride)
    return ConvBlock(in_channels, out_channels, kernel_size, dilation, stride)
