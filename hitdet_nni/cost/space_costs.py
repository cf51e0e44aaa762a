"""What every operator of every searched layer of a space costs in one unit, as exact counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.knapsack import cost_of_choice, largest_cost, least_cost
from hitdet_nni.cost.units import UNITS
from hitdet_nni.errors import InputError


class SpaceCosts:
    """The cost of each candidate of each searched layer, and of all layers that are not searched.

    Args:
        model: Costs of all layers; gives the input size, the RoIs and the convention that FLOPs are counted by.
        space: Candidate names of each component.
        key: What is counted: ``"gflops"``, ``"params_m"`` for millions of parameters, or ``"latency_ms"`` for
            milliseconds by the model's table.

    Attributes:
        unit: The unit, of which ``unit.scale`` counts are one.
        fixed: Exact count of all that is not searched, in FLOPs, parameters or nanoseconds.
        counts: Exact count of each candidate of each searched layer, by label and operator name.

    Raises:
        InputError: If a component has no candidate, a name is not an operator's, or the table of latencies lacks it.

    Source:
        Eq. 7: FLOPs(o, l), for every operator o and layer l.
    """

    def __init__(self, model: CostModel, space: Mapping[Component, Sequence[str]], key: BudgetKey = "gflops") -> None:
        for component in COMPONENTS:
            if not space[component]:
                raise InputError("no candidate operator", key=component)
        self.unit = UNITS[key]
        candidates = layer_candidates(model.skeleton, space)
        self.fixed: int = getattr(model.fixed_cost, self.unit.field)
        self.counts: dict[str, dict[str, int]] = {
            layer.label: {
                name: getattr(model.layer_cost(layer, name), self.unit.field) for name in candidates[layer.label]
            }
            for layer in model.layers
        }
        self._only = {label: next(iter(row)) for label, row in self.counts.items() if len(row) == 1}

    def check(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Refuse the layers of another space.

        Args:
            candidates: Names of all candidates of each layer that is searched, by label, in their order.

        Raises:
            InputError: Naming the first layer that differs.
        """
        counted = {label: tuple(row) for label, row in self.counts.items() if len(row) > 1 or label in candidates}
        for label in (*candidates, *counted):
            here, there = (", ".join(map(str, row.get(label, ()))) or "nothing" for row in (candidates, counted))
            if here != there:
                problem = f"is of another space: {label} is a choice among {there} there"
                raise InputError(problem, key="cost", allowed=f"costs of this one, where it is among {here}")

    @property
    def least(self) -> int:
        """Exact count of the cheapest architecture."""
        return self.fixed + least_cost(self.counts)

    @property
    def mean(self) -> float:
        """The mean count over all architectures, each as often as any other."""
        return self.fixed + sum(sum(row.values()) / len(row) for row in self.counts.values())

    @property
    def largest(self) -> int:
        """Exact count of the dearest architecture."""
        return self.fixed + largest_cost(self.counts)

    def of(self, sample: Mapping[str, str]) -> int:
        """Return the exact count of an architecture; layers with a single candidate may be left out of it.

        Raises:
            KeyError: If a layer with several candidates is left out, or an operator is not in the space.
        """
        return self.fixed + cost_of_choice({**self._only, **sample}, self.counts)
