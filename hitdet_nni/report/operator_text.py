"""Operator names for people: their family, and what they say in a block of a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hitdet_nni.config.operators import Family, Operator, parse_operator
from hitdet_nni.errors import InputError

FAMILIES: Mapping[Family, str] = {
    "ir": "inverted residual (IR)",
    "sep": "separable convolution (SEP)",
    "conv": "dense convolution (CONV)",
}


def family_of(name: str) -> Family | Literal["other"]:
    """Return the family of an operator; ``"other"`` for a name that is none."""
    try:
        return parse_operator(name).family
    except InputError:
        return "other"


def block_text(operator: Operator) -> str:
    """Write family, kernel, dilation and, of an inverted residual, expansion: ``"IR 5×5 d1 e6"``."""
    expansion = f" e{operator.expansion}" if operator.family == "ir" else ""
    kernel = operator.kernel_size
    return f"{operator.family.upper()} {kernel}×{kernel} d{operator.dilation}{expansion}"
