"""The operator names of the search space: their grammar, and the 32 of the paper.

A name carries its parameters: ``ir_k{kernel}_d{dilation}_e{expansion}`` (inverted residual),
``sep_k{kernel}_d{dilation}`` (separable) and ``conv_k{kernel}_d{dilation}`` (dense convolution).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hitdet_nni.errors import InputError

Family = Literal["ir", "sep", "conv"]

_GRAMMAR = re.compile(
    r"(?:(?P<ir>ir)|(?P<flat>sep|conv))_k(?P<kernel>[1-9]\d?)_d(?P<dilation>[1-9])(?(ir)_e(?P<expansion>[1-9]\d?))"
)
_GRAMMAR_TEXT = "ir_k{odd}_d{dilation}_e{expansion}, sep_k{odd}_d{dilation}, conv_k{odd}_d{dilation}"


@dataclass(frozen=True)
class Operator:
    """One candidate operator, as its name spells it.

    Attributes:
        family: ``"ir"``, ``"sep"`` or ``"conv"``.
        kernel_size: Side of the spatial kernel, odd.
        dilation: Dilation of the spatial kernel.
        expansion: Ratio of hidden to input channels of an ``ir``; 1 for the other families.
    """

    family: Family
    kernel_size: int
    dilation: int
    expansion: int = 1

    @property
    def name(self) -> str:
        """The name that :func:`parse_operator` reads back."""
        name = f"{self.family}_k{self.kernel_size}_d{self.dilation}"
        return f"{name}_e{self.expansion}" if self.family == "ir" else name


def _paper_operators() -> tuple[str, ...]:
    """Return the 32 names in the order of the paper's appendix 6.1."""
    operators = [Operator("ir", k, d, e) for k in (3, 5) for d in (1, 2, 3) for e in (1, 3, 6)]
    operators += [Operator("ir", 7, 1, e) for e in (1, 6)]
    operators += [Operator("sep", k, d) for k in (3, 5) for d in (1, 2, 3)]
    operators += [Operator("conv", k, d) for k in (3, 5) for d in (1, 2, 3)]
    return tuple(operator.name for operator in operators)


OPERATORS: tuple[str, ...] = _paper_operators()
"""The 32 operators of the whole search space O (appendix 6.1)."""


def parse_operator(name: str) -> Operator:
    """Read an operator name.

    Any name of the grammar is accepted, not only the paper's 32, so that a search space may hold more.

    Raises:
        InputError: If ``name`` is not of the grammar or its kernel is even.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None or int(match["kernel"]) % 2 == 0:
        raise InputError(f"unknown operator {name!r}", allowed=_GRAMMAR_TEXT)
    family: Family = "ir" if match["ir"] else "sep" if match["flat"] == "sep" else "conv"
    return Operator(family, int(match["kernel"]), int(match["dilation"]), int(match["expansion"] or 1))
