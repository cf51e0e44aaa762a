"""What the shipped baselines cost, as it was counted on mmdet's modules: stored, so that nobody need wait for mmdet.

``python docs/counted_costs.py`` writes the file, and a test counts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hitdet_nni.config.shipped import shipped
from hitdet_nni.cost.cost_model import Convention, Cost, Size
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json

CONVENTION: Convention = "paper"
"""How the stored FLOPs, and those of the paper's tables, are counted."""

FILE = "counted_costs.json"
"""Name of the file among the shipped baselines."""


@lru_cache
def _content() -> Any:
    return read_json(shipped("baselines", FILE))


def size_name(shape: Size) -> str:
    """Return what the file calls an input size: height x width."""
    return "x".join(map(str, shape))


def stored_costs(baseline: str, shape: Size) -> dict[str, Cost]:
    """Return a shipped baseline's cost by part, and ``total``, with as many proposals as its config has in testing.

    Args:
        baseline: Its bare name.
        shape: Height and width of the image.

    Raises:
        InputError: If the file does not have it.
    """
    try:
        costs: Mapping[str, Mapping[str, int]] = _content()[baseline][size_name(shape)]
    except KeyError:
        file = shipped("baselines", FILE)
        raise InputError(f"has no {baseline} at {size_name(shape)}", source=file, allowed="--count") from None
    return {part: Cost(**cost) for part, cost in costs.items()}
