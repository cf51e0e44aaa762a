"""Operator names for people: their family, and what they say in a block of a drawing."""

from __future__ import annotations

from hitdet_nni.errors import InputError
from hitdet_nni.operators.family import Operator
from hitdet_nni.operators.registry import FAMILIES, parse_operator


def family_titles() -> dict[str, str]:
    """Return what each family is called, by its name."""
    return {name: family.title for name, family in FAMILIES.items()}


def family_of(name: str) -> str:
    """Return the family of an operator; ``"other"`` for a name that is none."""
    try:
        return parse_operator(name).family
    except InputError:
        return "other"


def block_text(operator: Operator) -> str:
    """Return an operator's family and the numbers of its name, e.g. ``"IR 5×5 d1 e6"``."""
    numbers = {
        "kernel_size": f"{operator.kernel_size}×{operator.kernel_size}",
        "dilation": f"d{operator.dilation}",
        "expansion": f"e{operator.expansion}",
    }
    family = FAMILIES[operator.family]
    return " ".join([family.name.upper(), *(text for number, text in numbers.items() if family.has(number))])
