"""The ``search.budget`` section of the settings: what the found detector may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from hitdet_nni.config.data_settings import Section

BudgetKey = Literal["gflops", "params_m"]
"""The units of a budget (:data:`hitdet_nni.cost.units.UNITS`)."""


class BudgetSettings(Section):
    """What the found detector may cost at most; one of the two."""

    gflops: PositiveFloat | None = Field(None, description="GFLOPs (multiply-adds) at the skeleton's input size")
    params_m: PositiveFloat | None = Field(None, description="parameters, in millions")

    @model_validator(mode="after")
    def _one_of_two(self) -> BudgetSettings:
        if (self.gflops is None) == (self.params_m is None):
            raise ValueError("give gflops or params_m, one of the two")
        return self

    @property
    def key(self) -> BudgetKey:
        """The key that is given."""
        return "params_m" if self.gflops is None else "gflops"

    @property
    def limit(self) -> float:
        """The budget, in the unit of its key."""
        return float(getattr(self, self.key))
