"""The best choice of one operator a layer within an exact cost: a multiple-choice knapsack."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, Mapping[str, float]]
"""Score of each operator of each layer, by label and operator name."""

Costs = Mapping[str, Mapping[str, int]]
"""Exact cost of each operator of each layer, by label and operator name."""

TOLERANCE = 1e-10
"""Totals that differ by less than this share of what all layers can gain are equal: rounding of sums is less."""

FEW_CHOICES = 256
"""From this number of partial choices on, the best of them are completed, so that fewer have to be kept."""

COMPLETED = 32
"""How many of the best are completed then, and of all, evenly spaced."""

MOST_CHOICES = 100_000
"""Partial choices that are kept; beyond, the tolerance grows, which only happens where scores follow the costs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Option:
    name: str
    score: float
    cost: int


def least_cost(costs: Costs) -> int:
    """Return the cost of the cheapest choice of one operator a layer."""
    return sum(min(row.values()) for row in costs.values())


def largest_cost(costs: Costs) -> int:
    """Return the cost of the dearest choice of one operator a layer."""
    return sum(max(row.values()) for row in costs.values())


def cost_of_choice(choice: Mapping[str, str], costs: Costs) -> int:
    """Return the exact cost of one operator a layer.

    Raises:
        KeyError: If ``choice`` lacks a layer.
    """
    return sum(row[choice[label]] for label, row in costs.items())


def decode_within(scores: Scores, costs: Costs, limit: int) -> dict[str, str]:
    """Return the choice of one operator a layer that has the largest total score among those within a limit.

    Where the best operator of every layer fits (the first of equals), that is the answer. Otherwise the layers are
    decided one after the other by dynamic programming over partial choices. A partial choice is given up where
    another one has as large a score for no more cost, or where even the linear relaxation of the layers to come does
    not make it better than the best whole choice that is known. Costs are compared as integers.
    Where scores follow the costs so closely that more than :data:`MOST_CHOICES` would be left, the best choice that is
    known is the answer, and a warning says by how much another one may be ahead at most.

    Args:
        scores: Finite scores of the operators that may be chosen.
        costs: Costs of the same operators, at least; the order of its layers is that of the result.
        limit: The largest total cost, in the unit of ``costs``.

    Returns:
        Operator name of each layer. The same input gives the same result.

    Raises:
        KeyError: If ``scores`` lacks a layer, or ``costs`` an operator.
        ValueError: If a score is not finite, or no choice is within the limit.

    Source:
        Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11.
    """
    for label, row in scores.items():
        for name, score in row.items():
            if not math.isfinite(score):
                raise ValueError(f"the score of {name} in {label} is {score}")
    best = {label: max(scores[label], key=scores[label].__getitem__) for label in costs}
    if cost_of_choice(best, costs) <= limit:
        return best
    rows = [_undominated(scores[label], costs[label]) for label in costs]
    slack = limit - sum(row[0].cost for row in rows)
    if slack < 0:
        raise ValueError(f"no choice costs {limit} or less; the cheapest costs {limit - slack}")
    chosen = _Knapsack(rows, slack).solve()
    return {label: row[option].name for label, row, option in zip(costs, rows, chosen, strict=True)}


def _undominated(scores: Mapping[str, float], costs: Mapping[str, int]) -> list[_Option]:
    """Return the options by rising cost, without those that another one matches for less, or beats for no more."""
    options = [_Option(name, score, costs[name]) for name, score in scores.items()]
    kept: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.cost, -option.score)):
        if not kept or option.score > kept[-1].score:
            kept.append(option)
    return kept


@dataclass(frozen=True)
class _Step:
    """From one option of a layer to a better one, along the concave hull of its costs and gains."""

    layer: int
    option: int
    cost: int
    gain: float


class _Knapsack:
    """Gains and extra costs relative to each layer's cheapest option, in units that divide all costs.

    Args:
        rows: Undominated options of each layer, by rising cost.
        slack: What may be spent beyond the cheapest options.
    """

    def __init__(self, rows: Sequence[Sequence[_Option]], slack: int) -> None:
        extra = [[option.cost - row[0].cost for option in row] for row in rows]
        unit = math.gcd(*(cost for row in extra for cost in row)) or 1
        self.slack = slack // unit
        self.costs = [np.array([cost // unit for cost in row if cost // unit <= self.slack], np.int64) for row in extra]
        self.gains = [
            np.array([option.score - row[0].score for option in row[: len(costs)]])
            for row, costs in zip(rows, self.costs, strict=True)
        ]
        self.rounding = TOLERANCE * sum(float(gains[-1]) for gains in self.gains)
        steps = [step for layer in range(len(rows)) for step in self._hull(layer)]
        self.steps = sorted(steps, key=lambda step: -step.gain / step.cost)

    def _hull(self, layer: int) -> list[_Step]:
        costs, gains = self.costs[layer], self.gains[layer]
        hull = [0]
        for option in range(1, len(costs)):
            while len(hull) > 1:
                before, last = hull[-2:]
                rise = (gains[last] - gains[before]) * (costs[option] - costs[last])
                if rise > (gains[option] - gains[last]) * (costs[last] - costs[before]):
                    break
                hull.pop()
            hull.append(option)
        return [
            _Step(layer, to, int(costs[to] - costs[start]), float(gains[to] - gains[start]))
            for start, to in pairwise(hull)
        ]

    def solve(self) -> list[int]:
        """Return the option of each layer."""
        order = sorted(range(len(self.costs)), key=lambda layer: -len(self.costs[layer]))
        room, value = np.array([self.slack], np.int64), np.zeros(1)
        history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        most, best, tolerance = -math.inf, [0] * len(order), self.rounding
        for place in range(len(order) + 1):
            to_come = set(order[place:])
            steps = [step for step in self.steps if step.layer in to_come]
            bound = value + np.interp(
                room,
                np.cumsum([0, *(step.cost for step in steps)]),
                np.cumsum([0.0, *(step.gain for step in steps)]),
            )
            if place in (0, len(order)) or len(value) > FEW_CHOICES:
                spaced = np.linspace(0, len(bound) - 1, COMPLETED).astype(np.int64)
                some = np.concatenate([np.argsort(-bound, kind="stable")[:COMPLETED], spaced])
                totals, options = self._completed(room[some], value[some], steps)
                winner = int(np.argmax(totals))
                if totals[winner] > most:
                    most = float(totals[winner])
                    best = self._whole(order[:place], history, int(some[winner]), options[winner])
            if place == len(order):
                break
            kept = np.flatnonzero(bound > most + tolerance)
            while len(kept) > MOST_CHOICES:
                tolerance *= 10
                kept = np.flatnonzero(bound > most + tolerance)
            if not len(kept):
                break
            layer = order[place]
            left = (room[kept, None] - self.costs[layer]).ravel()
            total = (value[kept, None] + self.gains[layer]).ravel()
            fits = np.flatnonzero(left >= 0)
            fits = fits[np.lexsort((-total[fits], -left[fits]))]
            before = np.concatenate([[-math.inf], np.maximum.accumulate(total[fits])[:-1]])
            fits = fits[total[fits] > before]
            parents, chosen = np.divmod(fits, len(self.costs[layer]))
            history.append((kept[parents], chosen))
            room, value = left[fits], total[fits]
        if tolerance > self.rounding:
            logger.warning(
                "the scores follow the costs so closely that not all choices could be compared: another one may have a "
                "total larger by up to %.2g (it is %.6g above that of the cheapest choice)",
                tolerance,
                most,
            )
        return best

    def _completed(
        self, room: NDArray[np.int64], value: NDArray[np.float64], steps: Sequence[_Step]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Take the steps that fit, the most gain for the cost first; return totals and options of all layers."""
        room, value = room.copy(), value.copy()
        options = np.zeros((len(room), len(self.costs)), np.int64)
        open_ = np.ones_like(options, dtype=bool)
        for step in steps:
            taken = open_[:, step.layer] & (room >= step.cost)
            room[taken] -= step.cost
            value[taken] += step.gain
            options[taken, step.layer] = step.option
            open_[:, step.layer] = taken
        return value, options

    @staticmethod
    def _whole(
        decided: Sequence[int],
        history: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        index: int,
        options: NDArray[np.int64],
    ) -> list[int]:
        """Return the options of all layers of a partial choice that was completed."""
        whole: list[int] = options.tolist()
        for layer, (parents, chosen) in zip(reversed(decided), reversed(history), strict=True):
            whole[layer] = int(chosen[index])
            index = int(parents[index])
        return whole
