"""The families of operators, one row each, and the 32 operators of the paper.

A name carries its operator's numbers, e.g. ``ir_k5_d1_e6``. Names, costs and titles need no torch; blocks are made, and
the readers of the fused mixed layer found, when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hitdet_nni.errors import InputError
from hitdet_nni.operators import dense, inverted_residual, separable
from hitdet_nni.operators.costs import Convention, Cost, Size
from hitdet_nni.operators.family import Family, Operator

if TYPE_CHECKING:
    from torch import nn

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "ir",
            "ir_k{kernel_size}_d{dilation}_e{expansion}",
            "inverted residual (IR)",
            inverted_residual.build,
            inverted_residual.cost,
            fused="hitdet_nni.nas.fused.reading:INVERTED_RESIDUAL",
        ),
        Family(
            "sep",
            "sep_k{kernel_size}_d{dilation}",
            "separable convolution (SEP)",
            separable.build,
            separable.cost,
            fused="hitdet_nni.nas.fused.reading:SEPARABLE",
        ),
        Family(
            "conv",
            "conv_k{kernel_size}_d{dilation}",
            "dense convolution (CONV)",
            dense.build,
            dense.cost,
            fused="hitdet_nni.nas.fused.reading:DENSE",
        ),
    )
}
"""Every family, by its name."""


def operator_name(operator: Operator) -> str:
    """Return the name that :func:`parse_operator` reads back."""
    return FAMILIES[operator.family].spell(operator)


def _paper_operators() -> tuple[str, ...]:
    """Return the 32 names in the order of the paper's appendix 6.1."""
    operators = [Operator("ir", k, d, e) for k in (3, 5) for d in (1, 2, 3) for e in (1, 3, 6)]
    operators += [Operator("ir", 7, 1, e) for e in (1, 6)]
    operators += [Operator("sep", k, d) for k in (3, 5) for d in (1, 2, 3)]
    operators += [Operator("conv", k, d) for k in (3, 5) for d in (1, 2, 3)]
    return tuple(operator_name(operator) for operator in operators)


OPERATORS: tuple[str, ...] = _paper_operators()
"""The 32 operators of the whole search space O (appendix 6.1)."""


def parse_operator(name: str) -> Operator:
    """Read an operator name.

    Any name of a family is accepted, not only the paper's 32, so that a search space may hold more.

    Raises:
        InputError: If ``name`` is of no family, e.g. because its kernel is even.
    """
    for family in FAMILIES.values():
        operator = family.parse(name)
        if operator is not None:
            return operator
    allowed = ", ".join(family.grammar for family in FAMILIES.values())
    raise InputError(f"unknown operator {name!r}", allowed=allowed)


def build_operator(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build the block that an operator name stands for.

    Args:
        name: Operator name, e.g. ``"ir_k5_d1_e6"``.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.

    Shape:
        ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Raises:
        InputError: If the name is of no family.
    """
    operator = parse_operator(name)
    return FAMILIES[operator.family].build(operator, in_channels, out_channels, stride)


def operator_cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Return the cost of one operator, in closed form.

    Args:
        operator: The operator, e.g. of :func:`parse_operator`.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: 1 or 2.
        size: Height and width of its input.
        convention: How FLOPs are counted.
    """
    return FAMILIES[operator.family].cost(operator, in_channels, out_channels, stride, size, convention)
