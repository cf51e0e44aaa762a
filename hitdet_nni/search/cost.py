"""Parameters and FLOPs of a whole detector: one table for an architecture's cost and its expectation (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from hitdet_nni.errors import InputError
from hitdet_nni.model.operators import parse_operator
from hitdet_nni.search.fixed_cost import Part, fixed_layers
from hitdet_nni.search.layer_cost import Convention, Cost, Measure, Size, operator_cost
from hitdet_nni.skeleton import COMPONENTS, Component, SearchedLayer, Skeleton

__all__ = ["PARTS", "Convention", "Cost", "CostModel", "ExpectedCost", "Part", "Size"]

PARTS: tuple[Part, ...] = get_args(Part)
"""The parts that costs are summed by; a one-stage detector's ``rpn`` is zero."""


class CostModel:
    """Costs of all layers of a skeleton, for every operator where a layer is searched.

    Args:
        skeleton: The parts that are not searched.
        num_classes: Object classes, without background.
        shape: Rows and columns of the network's input; the skeleton's input size by default.
        proposals: RoIs that the head sees per picture; the skeleton's number in testing by default. A one-stage
            detector sees none, whatever is given: its ``proposals`` is 0.
        convention: How FLOPs are counted.

    Source:
        Eq. 7, FLOPs(o, l).
    """

    def __init__(
        self,
        skeleton: Skeleton,
        num_classes: int,
        *,
        shape: Size | None = None,
        proposals: int | None = None,
        convention: Convention = "macs",
    ) -> None:
        rois = skeleton.proposals_test if proposals is None else proposals
        self.skeleton = skeleton
        self.num_classes = num_classes
        self.shape = shape or skeleton.input_size
        self.proposals = rois if skeleton.layout.pooled else 0
        self.convention = convention
        self.layers = skeleton.searched_layers()
        self._measure = Measure(self.shape, self.proposals, convention)
        self.fixed = tuple(fixed_layers(skeleton, num_classes, self._measure))

    def layer_cost(self, layer: SearchedLayer, name: str) -> Cost:
        """Cost of one searched layer with the operator called ``name``.

        Raises:
            InputError: If ``name`` is not an operator's.
        """
        operator = parse_operator(name)
        channels = (layer.in_channels, layer.out_channels, layer.stride)
        return self._measure.shared(
            layer.reductions, lambda size: operator_cost(operator, *channels, size, self.convention)
        )

    def rows(self, sample: Mapping[str, str]) -> list[tuple[Part, str, str, Cost]]:
        """Every layer of one architecture: part, layer name, operator name (empty if fixed), cost.

        Raises:
            KeyError: If ``sample`` lacks a searched layer.
        """
        rows: list[tuple[Part, str, str, Cost]] = [
            (layer.component, layer.label, sample[layer.label], self.layer_cost(layer, sample[layer.label]))
            for layer in self.layers
        ]
        rows += [(layer.part, f"{layer.part}/{layer.name}", "", layer.cost) for layer in self.fixed]
        return sorted(rows, key=lambda row: PARTS.index(row[0]))

    def architecture(self, sample: Mapping[str, str]) -> dict[str, Cost]:
        """Cost of one architecture by part, and their ``total``.

        Args:
            sample: Operator name of each searched layer by its label.

        Raises:
            KeyError: If ``sample`` lacks a searched layer.
        """
        costs: dict[str, Cost] = {part: Cost() for part in PARTS}
        for part, _, _, cost in self.rows(sample):
            costs[part] += cost
        costs["total"] = sum(costs.values(), Cost())
        return costs

    def expectation(self, space: Mapping[Component, Sequence[str]]) -> ExpectedCost:
        """The expected cost over a space, differentiable in the probabilities.

        Args:
            space: Candidate names of each component, in the order of the probabilities.
        """
        return ExpectedCost(self, space)


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
