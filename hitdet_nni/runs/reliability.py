"""How far the supernets of a screening agree on its operators: what is kept of it, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from hitdet_nni.config.validation import validated
from hitdet_nni.io import read_json, write_json

MAX_P_VALUE = 0.01
"""Supernets agree better than chance if chance gives their agreement with this probability or less."""


class Reliability(BaseModel):
    """``screening/<component>_reliability.json``: the agreement of supernets of independent initialisation.

    A mean of several supernets is more reliable than one of them: with ``spearman`` between single ones, the mean of n
    is expected to agree with that of n others by :attr:`of_the_mean`.
    """

    model_config = ConfigDict(frozen=True)

    supernets: PositiveInt = Field(description="how many were trained")
    operators: PositiveInt = Field(description="operators that each has ranked")
    spearman: float = Field(description="Spearman's rank correlation of their orders, mean over the pairs")
    spearman_p: NonNegativeFloat = Field(description="probability of that, or more, by chance")
    common: NonNegativeFloat = Field(description="kept operators in common, mean over the pairs")
    kept: NonNegativeInt = Field(description="operators that are kept")
    chance: NonNegativeFloat = Field(description="what chance gives of the operators in common")
    common_p: NonNegativeFloat = Field(description="probability of as many in common, or more, by chance")

    @property
    def of_the_mean(self) -> float:
        """The expected correlation of two means of as many supernets.

        Source:
            Spearman, Correlation calculated from faulty data, and Brown, Some experimental results in the correlation
            of mental abilities, both British Journal of Psychology 3, 1910.
        """
        return self.supernets * self.spearman / (1 + (self.supernets - 1) * self.spearman) if self.spearman > 0 else 0.0

    @property
    def better_than_chance(self) -> bool | None:
        """Whether the supernets agree more than chance; ``None`` where so few operators cannot tell."""
        if min(self.spearman_p, self.common_p) <= MAX_P_VALUE:
            return True
        least = math.factorial(self.operators) ** (1 - self.supernets)  # the others' orders are the first's by chance
        return None if least > MAX_P_VALUE else False

    def sentence(self, component: str, remedies: Sequence[str] = ()) -> str:
        """Say in one line how far the ranking of a component's operators is to be trusted.

        Args:
            component: The component.
            remedies: What to try where it is not.
        """
        what = (
            f"rho {self.spearman:+.2f}, p {self.spearman_p:.2g}; {self.common:.3g} of {self.kept} kept operators, "
            f"{self.chance:.3g} by chance, p {self.common_p:.2g}"
        )
        start = f"{component}: {self.supernets} supernets of independent initialisation rank the operators"
        if self.better_than_chance is None:
            return f"{start} ({what}): {self.operators} operators are too few to tell that from chance"
        if self.better_than_chance:
            return f"{start} alike ({what}); their mean is expected to agree by {self.of_the_mean:.2f} with another's"
        way = f"; try {', '.join(remedies[:-1])} or {remedies[-1]}" if len(remedies) > 1 else ""
        return f"{start} no better alike than chance ({what}): what is kept says nothing about your data yet{way}"


def write_reliability(path: Path, reliability: Reliability) -> None:
    """Write the reliability of a component's screening."""
    write_json(path, reliability.model_dump())


def read_reliability(path: Path) -> Reliability:
    """Read the reliability of a component's screening.

    Raises:
        InputError: If the file cannot be read, or is not such a file.
    """
    return validated(Reliability, path, read_json(path))
