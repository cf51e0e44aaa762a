"""The expected cost of a supernet, differentiable in the probabilities of its operators (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.errors import InputError


class ExpectedCost:
    """Expected FLOPs of a supernet, ``C(alpha) + C(beta) + C(gamma)`` plus the fixed layers.

    Args:
        model: Costs of all layers.
        space: Candidate names of each component, in the order of the probabilities.

    Raises:
        InputError: If a component has no candidate, or a name is not an operator's.

    Source:
        Eq. 7, with the softmax probabilities in place of alpha.
    """

    def __init__(self, model: CostModel, space: Mapping[Component, Sequence[str]]) -> None:
        for component in COMPONENTS:
            if not space[component]:
                raise InputError("no candidate operator", key=component)
        self.model = model
        self.names = {layer.label: tuple(space[layer.component]) for layer in model.layers}
        self.fixed_gflops = sum(layer.cost.flops for layer in model.fixed) / 1e9
        self._gflops = {
            layer.label: torch.tensor(
                [model.layer_cost(layer, name).flops / 1e9 for name in space[layer.component]], dtype=torch.float64
            )
            for layer in model.layers
        }

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Expected GFLOPs.

        Args:
            probabilities: For each searched layer's label the probability of each of its candidates, shape ``[N]``.
                A layer with one candidate may be left out.

        Returns:
            A scalar in GFLOPs; its gradient reaches every probability given.

        Raises:
            KeyError: If a layer with several candidates is left out.
        """
        total = torch.tensor(self.fixed_gflops, dtype=torch.float64)
        for label, gflops in self._gflops.items():
            if label not in probabilities and len(gflops) == 1:
                total = total + gflops[0]
                continue
            probability = probabilities[label]
            total = total.to(probability.device) + probability.double() @ gflops.to(probability.device)
        return total
