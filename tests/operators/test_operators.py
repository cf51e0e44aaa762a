"""The operator table: names, grammar, and what each name builds."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.operators.family import Operator
from hitdet_nni.operators.registry import OPERATORS, build_operator, operator_name, parse_operator

# Appendix 6.1, written out.
PAPER = [
    "ir_k3_d1_e1",
    "ir_k3_d1_e3",
    "ir_k3_d1_e6",
    "ir_k3_d2_e1",
    "ir_k3_d2_e3",
    "ir_k3_d2_e6",
    "ir_k3_d3_e1",
    "ir_k3_d3_e3",
    "ir_k3_d3_e6",
    "ir_k5_d1_e1",
    "ir_k5_d1_e3",
    "ir_k5_d1_e6",
    "ir_k5_d2_e1",
    "ir_k5_d2_e3",
    "ir_k5_d2_e6",
    "ir_k5_d3_e1",
    "ir_k5_d3_e3",
    "ir_k5_d3_e6",
    "ir_k7_d1_e1",
    "ir_k7_d1_e6",
    "sep_k3_d1",
    "sep_k3_d2",
    "sep_k3_d3",
    "sep_k5_d1",
    "sep_k5_d2",
    "sep_k5_d3",
    "conv_k3_d1",
    "conv_k3_d2",
    "conv_k3_d3",
    "conv_k5_d1",
    "conv_k5_d2",
    "conv_k5_d3",
]
CASES = [(name, stride, channels) for name in OPERATORS for stride in (1, 2) for channels in ((6, 6), (6, 10))]


def last_norm(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def test_the_32_names():
    assert list(OPERATORS) == PAPER
    assert len(set(OPERATORS)) == 32
    assert [sum(name.startswith(family) for name in OPERATORS) for family in ("ir_", "sep_", "conv_")] == [20, 6, 6]
    assert load_search_space("full") == dict.fromkeys(("backbone", "neck", "head"), PAPER)


def test_published_sub_spaces_are_eight_of_the_32(published):
    for names in published.values():
        assert len(names) == 8
        assert set(names) < set(OPERATORS)
    assert {"ir_k5_d1_e3", "ir_k5_d1_e6"} < set(published["backbone"])  # the misprint of appendix 6.2, mended


@pytest.mark.parametrize("name", [*OPERATORS, "ir_k9_d4_e12", "sep_k11_d9"])
def test_a_name_reads_back(name):
    assert operator_name(parse_operator(name)) == name


def test_parameters_of_a_name():
    assert parse_operator("ir_k5_d2_e6") == Operator("ir", 5, 2, 6)
    assert parse_operator("sep_k3_d1") == Operator("sep", 3, 1)
    assert parse_operator("conv_k5_d3") == Operator("conv", 5, 3)


@pytest.mark.parametrize(
    "name",
    [
        *("ir_k4_d1_e3", "sep_k2_d1", "conv_k10_d1", "ir_k0_d1_e3", "ir_k3_d0_e3", "ir_k3_d1_e0"),
        *("ir_k03_d1_e3", "ir_k-3_d1_e3", "ir_k3_d1_e1.5", "ir_k٣_d1_e3"),
        *("ir", "sep_k3", "ir_k3_d1", "ir_k3_e3", "ir_d1_e3", "conv_k3_d1_e3", "sep_k3_d1_e1"),
        *("skip", "identity", "maxpool_k3", "gconv_k3_d1", "IR_k3_d1_e3", "", " ir_k3_d1_e3", "ir_k3_d1_e3\n"),
    ],
)
def test_other_names_are_refused(name, refused):
    with refused(" ".join(repr(name).split()), "ir_k{odd}_d{dilation}_e{expansion}"):
        parse_operator(name)
    with refused():
        build_operator(name, 4, 4, 1)


@pytest.mark.parametrize(("name", "stride", "channels"), CASES)
def test_block(name, stride, channels):
    """Shape, spatial convolution, residual and last activation of one operator."""
    family, kernel_size, dilation = re.match(r"([a-z]+)_k(\d)_d(\d)", name).groups()
    padding = (int(kernel_size) - 1) * int(dilation) // 2
    expansion = int(name.partition("_e")[2] or 1)
    in_channels, out_channels = channels
    block = build_operator(name, in_channels, out_channels, stride)

    convolutions = [part for part in block.modules() if isinstance(part, nn.Conv2d)]
    (spatial,) = (conv for conv in convolutions if conv.kernel_size != (1, 1))
    assert spatial.kernel_size == (int(kernel_size),) * 2
    assert spatial.dilation == (int(dilation),) * 2
    assert spatial.padding == (padding, padding)
    assert spatial.stride == (stride, stride)
    hidden = in_channels * expansion
    assert spatial.groups == (1 if family == "conv" else hidden)
    assert spatial.in_channels == hidden
    assert len(convolutions) == {"conv": 1, "sep": 2, "ir": 3}[family]
    assert all(conv.bias is None for conv in convolutions)
    assert all(conv.stride == (1, 1) for conv in convolutions if conv is not spatial)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in block.modules()) == len(convolutions)
    assert sum(type(part) is nn.ReLU for part in block.modules()) == {"conv": 1, "sep": 1, "ir": 2}[family]

    for size in ((8, 12), (7, 9), (1, 5)):
        assert block.eval()(torch.randn(2, in_channels, *size)).shape == (
            2,
            out_channels,
            *(math.ceil(side / stride) for side in size),
        )

    # With the last normalisation at the constant -1, the output is what comes after it: the residual and the ReLU.
    norm = last_norm(block)
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, -1.0)
    x = torch.randn(2, in_channels, 7, 9)
    given, y = x.clone(), block(x)
    if family == "conv":
        expected = torch.zeros_like(y)
    elif stride == 1 and in_channels == out_channels:
        expected = given - 1
    else:
        expected = torch.full_like(y, -1.0)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x, given)  # the in-place ReLU must not reach the input


@pytest.mark.parametrize("name", ["ir_k5_d2_e3", "sep_k3_d3", "conv_k3_d2"])
def test_every_parameter_of_a_block_is_trained(name):
    block = build_operator(name, 4, 4, 1)
    block(torch.randn(2, 4, 9, 9)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())
