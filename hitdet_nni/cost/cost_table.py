"""The cost of every operator of every searched layer as tensors, and its expectation under probabilities (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.space_costs import SpaceCosts


class CostTable(SpaceCosts):
    """The costs of a space, whose expectation gives probabilities a gradient.

    Args:
        model: Costs of all layers; gives the input size, the RoIs and the convention that FLOPs are counted by.
        space: Candidate names of each component, in the order of the probabilities.
        key: What is counted.

    Raises:
        InputError: As :class:`SpaceCosts`.
    """

    def __init__(self, model: CostModel, space: Mapping[Component, Sequence[str]], key: BudgetKey = "gflops") -> None:
        super().__init__(model, space, key)
        scale = self.unit.scale
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
