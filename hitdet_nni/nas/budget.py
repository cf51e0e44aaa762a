"""A search within a budget: the best architecture that keeps it, and the cost weight that leads there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.cost.knapsack import Scores, decode_within, least_cost
from hitdet_nni.errors import InputError

_NAMED_DIGITS = 6
"""Significant digits of a cost that a message names, rounded up so that it is reachable as written."""


class Budget:
    """What the found detector may cost, all layers included, in the unit that the user chose.

    Args:
        model: Costs of all layers; gives the input size, the RoIs and the convention that FLOPs are counted by.
        space: Candidate names of each component, in the order of the probabilities.
        settings: The budget, in one of the units.

    Attributes:
        key: The key of ``search.budget`` that is given.
        costs: The costs of the space in the budget's unit.
        limit: The budget in that unit.
        count: The same as an exact count, in FLOPs, parameters or nanoseconds.
    """

    def __init__(self, model: CostModel, space: Mapping[Component, Sequence[str]], settings: BudgetSettings) -> None:
        self.key = settings.key
        self.costs = CostTable(model, space, self.key)
        self.limit = settings.limit
        # The shortest decimal of a float is the number as it was typed: 0.3 means 300 000 000 FLOPs, not one less.
        self.count = int(Decimal(repr(self.limit)) * self.costs.unit.scale)

    def check_reachable(self, source: str | Path | None = None, *, by_option: bool = False) -> None:
        """Refuse a budget that no architecture of the space keeps.

        Args:
            source: The file or option that the budget comes from, for the message.
            by_option: Whether it is an option, and the message is to name no key of a config.

        Raises:
            InputError: Naming the least budget that is reachable.
        """
        key = None if by_option else self._setting
        self._check_least(self.costs.least, source, key)

    @property
    def largest(self) -> float:
        """Cost of the dearest architecture of the space, in the budget's unit."""
        return self.costs.largest / self.costs.unit.scale

    def keeps(self, sample: Mapping[str, str]) -> bool:
        """Return whether an architecture is within the budget; layers with one candidate may be left out of it."""
        return self.costs.of(sample) <= self.count

    def strongest(self, scores: Scores) -> dict[str, str]:
        """Return the architecture with the largest total score among those within the budget.

        Args:
            scores: For each searched layer's label the score of each candidate that may be chosen. A layer with one
                candidate may be left out; it counts all the same.

        Returns:
            One operator for every searched layer, fixed ones included; its exact cost is within the budget.

        Raises:
            InputError: If the candidates given cannot keep the budget.
            KeyError: If a layer with several candidates is left out, or an operator is not in the space.
            ValueError: If a score is not finite.
        """
        counts = self.costs.counts
        complete = {
            label: scores[label] if label in scores or len(row) > 1 else dict.fromkeys(row, 0.0)
            for label, row in counts.items()
        }
        active = {label: {name: counts[label][name] for name in row} for label, row in complete.items()}
        self._check_least(self.costs.fixed + least_cost(active), None, self._setting)
        return decode_within(complete, active, self.count - self.costs.fixed)

    @property
    def _setting(self) -> str:
        return f"search.budget.{self.key}"

    def _check_least(self, least: int, source: str | Path | None, key: str | None) -> None:
        if least > self.count:
            unit = self.costs.unit
            upwards = Context(prec=_NAMED_DIGITS, rounding=ROUND_CEILING)
            named = upwards.divide(Decimal(least), Decimal(unit.scale))
            raise InputError(
                f"{self.limit} {unit.name} is less than any architecture of the space has",
                source=source,
                key=key,
                allowed=f"{named:f} or more",
            )


def search_budget(
    model: CostModel, space: Mapping[Component, Sequence[str]], settings: BudgetSettings | None
) -> Budget | None:
    """Return the budget that ``search.budget`` gives, ``None`` where it gives none."""
    return None if settings is None else Budget(model, space, settings)


class BudgetMultiplier:
    """The weight of the cost in the architecture loss, adapted so that the expected cost approaches a budget.

    The problem is to minimise the validation loss subject to ``g <= 0``, where ``g = log(expected / limit)`` makes a
    miss of a tenth the same for a small detector and a large one. Its multiplier follows dual ascent with damping (a
    proportional and an integral term), in the logarithm, so that it stays positive and falls below the budget as it
    rises above it. Once every architecture step::

        log m  <-  log m + 20 * lr * max(g, -0.05)     within a factor of 10^4 of the start
        weight  =  m * exp(40 * g)                     the exponential between 10^-4 and e^2

    - The integral term ``m`` finds the weight at which the expected cost stays at the limit: it rests only there. Its
      rate is in units of the alphas' learning rate, because Adam moves an alpha by about one ``lr`` a step, so that
      short searches with a large rate and long ones with a small rate take the same course.
    - The proportional term damps: dual ascent alone swings around the limit, since the alphas take many steps to
      answer. With ``m`` held it is the gradient of a penalty that grows as ``(expected / limit)^41``. Let the expected
      cost fall by a share of ``lr * a`` a step for each e-fold of weight too many: linearised, the course is
      overdamped where ``a`` is above ``4 * 20 / 40^2 = 0.05``.
    - ``m`` falls by one e-fold in ``1 / lr`` steps at most. Far below the limit the proportional term alone makes the
      cost no concern; an ``m`` that had fallen on the way up would be too small to stop the cost at the limit.
    - The cap of ``e^2`` keeps a start far above the budget from filling Adam's second moments with huge gradients,
      after which the loss would not be heard for hundreds of steps. The floor keeps the weight positive.
    - The bounds on ``m`` limit how long it takes to come back where the budget was out of reach, or no constraint.

    Args:
        limit: The budget, in its unit.
        start: Weight to start from, per unit of the budget. Less than ``0.1 / limit`` is raised to that, a cost term of
            a tenth in a detection loss of the order of one: a search is too short to grow from much less, or from 0.
        alpha_lr: Learning rate of the architecture parameters.

    Source:
        lambda of Eq. 6. Damped multiplier: Platt and Barr, Constrained Differential Optimization, NIPS 1987.
    """

    INTEGRAL = 20.0
    PROPORTIONAL = 40.0
    CAP = 2.0
    LOWEST_EXCESS = -0.05
    SMALLEST_START = 0.1
    RANGE = math.log(1e4)

    def __init__(self, limit: float, start: float, alpha_lr: float) -> None:
        self.limit = limit
        self.rate = self.INTEGRAL * alpha_lr
        self._start = math.log(max(start, self.SMALLEST_START / limit))
        self._log_multiplier = self._start
        self._excess = 0.0

    @property
    def weight(self) -> float:
        """The weight of the expected cost, per GFLOP or per million parameters; positive."""
        proportional = min(max(self.PROPORTIONAL * self._excess, -self.RANGE), self.CAP)
        return math.exp(self._log_multiplier + proportional)

    def update(self, expected: float) -> None:
        """Adapt the weight to the expected cost, once an architecture step and before the weight is used.

        Args:
            expected: Expected cost in the budget's unit.

        Raises:
            ValueError: If it is not a positive number, which means that the architecture parameters have diverged.
        """
        if not 0 < expected < math.inf:
            raise ValueError(f"the expected cost is {expected}: the architecture parameters have diverged")
        self._excess = math.log(expected / self.limit)
        moved = self._log_multiplier + self.rate * max(self._excess, self.LOWEST_EXCESS)
        self._log_multiplier = min(max(moved, self._start - self.RANGE), self._start + self.RANGE)

    def state_dict(self) -> dict[str, float]:
        """Return what an exact resume needs, as plain numbers."""
        return {"log_multiplier": self._log_multiplier, "excess": self._excess}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._log_multiplier = state["log_multiplier"]
        self._excess = state["excess"]
