"""The ``search.budget`` section of the settings: what the found detector may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, PositiveFloat, model_validator

from hitdet_nni.config.data_settings import Section

BudgetKey = Literal["gflops", "params_m", "latency_ms"]
"""The units of a budget (:data:`hitdet_nni.cost.units.UNITS`)."""

BUDGET_KEYS: tuple[BudgetKey, ...] = get_args(BudgetKey)


class BudgetSettings(Section):
    """What the found detector may cost at most, in one unit."""

    gflops: PositiveFloat | None = Field(
        None, description="GFLOPs (multiply-adds) at the skeleton's input size, padded to multiples of 32"
    )
    params_m: PositiveFloat | None = Field(None, description="parameters, in millions")
    latency_ms: PositiveFloat | None = Field(None, description="milliseconds an image, by the table")
    table: Path | None = Field(None, description="file of `hitdet-nni latency`, with latency_ms")
    other_machine: bool = Field(
        False, description="take a table that was measured on another machine, to search here for that one"
    )

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetSettings:
        if sum(getattr(self, key) is not None for key in BUDGET_KEYS) != 1:
            raise ValueError(f"give one of {', '.join(BUDGET_KEYS)}")
        if self.latency_ms is not None and self.table is None:
            raise ValueError("latency_ms needs a table: hitdet-nni latency measures one")
        if self.latency_ms is None and self.table is not None:
            raise ValueError(f"table has no meaning with {self.key}: give latency_ms, or no table")
        return self

    @property
    def key(self) -> BudgetKey:
        """The key that is given."""
        return next(key for key in BUDGET_KEYS if getattr(self, key) is not None)

    @property
    def limit(self) -> float:
        """The budget, in the unit of its key."""
        return float(getattr(self, self.key))
