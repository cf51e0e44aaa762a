"""The best choice of one operator a layer within an exact cost: a multiple-choice knapsack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

Scores = Mapping[str, Mapping[str, float]]
"""Score of each operator of each layer, by label and operator name."""

Costs = Mapping[str, Mapping[str, int]]
"""Exact cost of each operator of each layer, by label and operator name."""

_LARGEST_GAIN = 1e4
"""Scores are scaled to this range, so that HiGHS' absolute gap of 1e-6 is a ten-thousand-millionth of it."""

_DIGIT_BASE = 1000
"""Of costs written in digits; HiGHS' tolerances of 1e-6, summed over a thousand operators, stay below one unit."""


@dataclass(frozen=True)
class _Option:
    name: str
    score: float
    cost: int


def least_cost(costs: Costs) -> int:
    """Return the cost of the cheapest choice of one operator a layer."""
    return sum(min(row.values()) for row in costs.values())


def cost_of_choice(choice: Mapping[str, str], costs: Costs) -> int:
    """Return the exact cost of one operator a layer.

    Raises:
        KeyError: If ``choice`` lacks a layer.
    """
    return sum(row[choice[label]] for label, row in costs.items())


def decode_within(scores: Scores, costs: Costs, limit: int) -> dict[str, str]:
    """Return the choice of one operator a layer that has the largest total score among those within a limit.

    Where the best operator of every layer fits (the first of equals), that is the answer. Otherwise an integer program
    is solved to optimality. The solver computes in floating point and takes a limit exceeded by its tolerance for
    kept; the integers decide, and where they disagree it solves again with the costs written in digits.

    Args:
        scores: Finite scores of the operators that may be chosen.
        costs: Costs of the same operators, at least; the order of its layers is that of the result.
        limit: The largest total cost, in the unit of ``costs``.

    Returns:
        Operator name of each layer. The same input gives the same result.

    Raises:
        KeyError: If ``scores`` lacks a layer, or ``costs`` an operator.
        ValueError: If a score is not finite, or no choice is within the limit.
        RuntimeError: If the solver fails, or its answer breaks the limit by more than rounding.
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
    rows = [[option for option in row if option.cost - row[0].cost <= slack] for row in rows]
    for base in (slack + 1, _DIGIT_BASE):
        chosen = _solve(rows, slack, base)
        if sum(option.cost for option in chosen) <= limit:
            return {label: option.name for label, option in zip(costs, chosen, strict=True)}
    raise RuntimeError(f"the integer program's solution exceeds {limit} by more than rounding")


def _undominated(scores: Mapping[str, float], costs: Mapping[str, int]) -> list[_Option]:
    """Return the options by rising cost, without those that another one matches for less, or beats for no more."""
    options = [_Option(name, score, costs[name]) for name, score in scores.items()]
    kept: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.cost, -option.score)):
        if not kept or option.score > kept[-1].score:
            kept.append(option)
    return kept


def _solve(rows: Sequence[Sequence[_Option]], slack: int, base: int) -> list[_Option]:
    """Solve the integer program over gains and extra costs relative to each layer's cheapest option."""
    gains = np.array([option.score - row[0].score for row in rows for option in row])
    extra = [option.cost - row[0].cost for row in rows for option in row]
    unit = math.gcd(*extra) or 1
    digits, upper = _digit_rows([cost // unit for cost in extra], slack // unit, base)
    carries = digits.shape[1] - len(gains)
    layer = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    one_each = np.zeros((len(rows), digits.shape[1]))
    one_each[layer, np.arange(len(gains))] = 1.0
    result = milp(
        np.concatenate([-gains * (_LARGEST_GAIN / (gains.max() or 1.0)), np.zeros(carries)]),
        integrality=np.ones(digits.shape[1]),
        bounds=Bounds(0, np.concatenate([np.ones(len(gains)), np.full(carries, np.inf)])),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(digits, -np.inf, upper)],
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise RuntimeError(f"the integer program was not solved: {result.message}")
    chosen = result.x[: len(gains)]
    return [row[int(np.argmax(chosen[layer == index]))] for index, row in enumerate(rows)]


def _digit_rows(costs: Sequence[int], limit: int, base: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows and upper bounds that say ``costs @ x <= limit`` digit by digit, each row divided by ``base``.

    Each digit's row but the last has a column of its own behind those of ``x``: a whole number that is carried to the
    next digit. With a base above ``limit`` there is one row and no carry.
    """
    count = 1
    while base**count <= limit:
        count += 1
    rows, upper = np.zeros((count, len(costs) + count - 1)), np.zeros(count)
    for digit in range(count):
        rows[digit, : len(costs)] = [cost // base**digit % base for cost in costs]
        upper[digit] = limit // base**digit % base
        if digit > 0:
            rows[digit, len(costs) + digit - 1] = 1
        if digit < count - 1:
            rows[digit, len(costs) + digit] = -base
    return rows / base, upper / base
