"""Which architectures of a front were asked for by a budget, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from hitdet_nni.runs.front import FrontRow, chosen_point

_FILE = re.compile(r"budget-(\d+(?:\.\d+)?)\.json")


def budget_name(budget: float) -> str:
    """Return the name of the architecture that is the best within a budget, and of its file without ``.json``."""
    return f"budget-{Decimal(repr(budget)).normalize():f}"


def read_budgets(folder: Path) -> tuple[float, ...]:
    """Return the budgets that architectures of a front lie there for, in ascending order.

    Args:
        folder: Folder of the front.
    """
    named = (_FILE.fullmatch(file.name) for file in folder.glob("budget-*.json"))
    return tuple(sorted(float(found[1]) for found in named if found is not None))


def budgets_by_point(rows: Sequence[FrontRow], budgets: Sequence[float]) -> dict[str, list[float]]:
    """Return the budgets that each architecture is the best of a front within, by its name.

    Args:
        rows: The front, and what was compared with it.
        budgets: Costs in the front's unit, in ascending order.

    Raises:
        InputError: If the cheapest costs more than one of them.
    """
    found: dict[str, list[float]] = {}
    for budget in budgets:
        found.setdefault(chosen_point(rows, budget).name, []).append(budget)
    return found
