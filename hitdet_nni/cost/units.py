"""The units that a search counts costs in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hitdet_nni.config.budget_settings import BudgetKey


@dataclass(frozen=True)
class Unit:
    """What costs are counted in.

    Attributes:
        name: For people.
        field: The field of :class:`~hitdet_nni.operators.costs.Cost` that is counted, a whole number.
        scale: Counts in one unit.
    """

    name: str
    field: Literal["flops", "params", "nanoseconds"]
    scale: int


UNITS: Mapping[BudgetKey, Unit] = {
    "gflops": Unit("GFLOPs", "flops", 10**9),
    "params_m": Unit("M parameters", "params", 10**6),
    "latency_ms": Unit("ms", "nanoseconds", 10**6),
}
"""The units, by their keys of ``search.budget``."""
