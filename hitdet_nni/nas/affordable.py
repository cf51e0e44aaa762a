"""What a screening hands on where the search has a budget: its best operators, cheap enough ones among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import COMPONENTS, Component, component_of
from hitdet_nni.nas.budget import Budget

logger = logging.getLogger(__name__)

LEFT_TO_THE_SEARCH = 0.25
"""The part of what a budget allows above the cheapest architecture that is left to the search's choice."""


def affordable(kept: SearchSpace, reserve: Mapping[Component, Sequence[str]], budget: Budget) -> SearchSpace:
    """Return the operators that a screening has kept, the last of them replaced where they put the budget out of reach.

    The cheapest architecture of the operators kept may cost as much as the whole space's and three quarters of what the
    budget allows above that. Where it costs more, components give up their worst operators for the best of the others
    that are cheap enough, first the component that is farthest above its part. The parts are in proportion to what a
    component's operators cost on average above their cheapest.

    Args:
        kept: The operators kept of each component, the best first.
        reserve: The other ones, the best first.
        budget: The search's budget, over the whole space.

    Source:
        An addition: the paper screens without regard to cost, and has no budget.
    """
    costs = budget.costs
    components = [
        _Kept([row for label, row in costs.counts.items() if component_of(label) == each], kept[each], reserve[each])
        for each in COMPONENTS
    ]
    slack = max(0, budget.count - costs.fixed - sum(one.cheapest for one in components))
    share = (1 - LEFT_TO_THE_SEARCH) * slack / (sum(one.above for one in components) or 1)
    for one in components:
        one.part = one.cheapest + share * one.above
    while sum(one.excess for one in components) > 0:
        movable = [index for index, one in enumerate(components) if one.best and one.reserve]
        if not movable:
            break
        index = max(movable, key=lambda index: components[index].excess)
        left_out, taken = components[index].give_up_the_last()
        sentence = "screening %s: %s is kept in place of %s, so that %g %s are within reach"
        logger.info(sentence, COMPONENTS[index], taken, left_out, budget.limit, costs.unit.name)
    return {component: one.names for component, one in zip(COMPONENTS, components, strict=True)}


class _Kept:
    """The operators that are kept of a component.

    Args:
        rows: What each operator of the whole space costs in each layer.
        best: Operators kept for their rank, the best first.
        reserve: The others, the best first.

    Attributes:
        cheapest: What the component costs at least in the whole space.
        above: What its operators cost on average above that.
        part: What it may cost at least with those that are kept.
    """

    def __init__(self, rows: Sequence[Mapping[str, int]], best: Sequence[str], reserve: Sequence[str]) -> None:
        self._rows = rows
        self.best, self.reserve = list(best), list(reserve)
        self._cheap: list[str] = []
        self.cheapest = sum(min(row.values()) for row in rows)
        self.above = sum(sum(row.values()) / len(row) for row in rows) - self.cheapest
        self.part = float(self.cheapest)

    @property
    def names(self) -> list[str]:
        """All that are kept."""
        return [*self.best, *self._cheap]

    @property
    def excess(self) -> float:
        """What the component costs at least above its part, in the budget's exact count; below it, negative."""
        return self._least(self.names) - self.part

    def give_up_the_last(self) -> tuple[str, str]:
        """Replace the worst operator by the best one that is cheap enough, else by the cheapest; return both."""
        left_out = self.best.pop()
        costs = {name: self._least([*self.names, name]) for name in self.reserve}
        enough = [name for name in self.reserve if costs[name] <= self.part]
        taken = enough[0] if enough else min(self.reserve, key=costs.__getitem__)
        self.reserve.remove(taken)
        self._cheap.append(taken)
        return left_out, taken

    def _least(self, names: Sequence[str]) -> int:
        return sum(min(row[name] for name in names) for row in self._rows)
