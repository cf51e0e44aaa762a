"""The cost of every operator of every searched layer in one unit, and its expectation under probabilities (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.units import UNITS
from hitdet_nni.errors import InputError


class CostTable:
    """The cost of each candidate of each searched layer, and of all layers that are not searched.

    Args:
        model: Costs of all layers; gives the input size, the RoIs and the convention that FLOPs are counted by.
        space: Candidate names of each component, in the order of the probabilities.
        key: What is counted: ``"gflops"``, ``"params_m"`` for millions of parameters, or ``"latency_ms"`` for
            milliseconds by the model's table.

    Attributes:
        unit: The unit of :meth:`expected`.
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
        field, scale = self.unit.field, self.unit.scale
        candidates = layer_candidates(model.skeleton, space)
        self.fixed: int = getattr(model.fixed_cost, field)
        self.counts: dict[str, dict[str, int]] = {
            layer.label: {name: getattr(model.layer_cost(layer, name), field) for name in candidates[layer.label]}
            for layer in model.layers
        }
        self._rows = {
            label: torch.tensor([count / scale for count in row.values()], dtype=torch.float64)
            for label, row in self.counts.items()
        }

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected cost of the whole detector, ``C(alpha) + C(beta) + C(gamma)`` plus the fixed layers.

        Args:
            probabilities: For each searched layer's label the probability of each of its candidates, shape ``[N]``.
                A layer with one candidate may be left out.

        Returns:
            A scalar in the table's unit, float64; its gradient reaches every probability given.

        Raises:
            KeyError: If a layer with several candidates is left out.

        Source:
            Eq. 7, with the softmax probabilities in place of alpha.
        """
        total = torch.tensor(self.fixed / self.unit.scale, dtype=torch.float64)
        for label, row in self._rows.items():
            if label not in probabilities and len(row) == 1:
                total = total + row[0].to(total.device)
                continue
            probability = probabilities[label]
            total = total.to(probability.device) + probability.double() @ row.to(probability.device)
        return total
