"""Parameters and FLOPs of a whole detector: the cost of every layer with every operator, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from hitdet_nni.config.skeleton import SearchedLayer, Skeleton
from hitdet_nni.cost.counting import CountingConditions
from hitdet_nni.cost.fixed_cost import DetectorPart, fixed_layers
from hitdet_nni.cost.latency_table import LatencyTable
from hitdet_nni.operators.costs import Convention, Cost, Size
from hitdet_nni.operators.registry import operator_cost, parse_operator

__all__ = ["PARTS", "Convention", "Cost", "CostModel", "DetectorPart", "Size"]

PARTS: tuple[DetectorPart, ...] = get_args(DetectorPart)
"""The parts that costs are summed by; a one-stage detector's ``rpn`` is zero."""


class CostModel:
    """Costs of all layers of a skeleton, for every operator where a layer is searched.

    Args:
        skeleton: The parts that are not searched.
        num_classes: Object classes, without background.
        shape: Height and width of the network's input; by default the skeleton's input size as it is padded.
        proposals: RoIs that the head sees per image; the skeleton's number in testing by default. A one-stage
            detector sees none, whatever is given: its ``proposals`` is 0.
        convention: How FLOPs are counted.
        latency: Measured times, which costs then have, too; without it their time is 0.

    Attributes:
        overhead: What a measured detector takes beyond its layers, such as the suppression of boxes.

    Raises:
        InputError: If the times are of another detector, input size or number of RoIs.

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
        latency: LatencyTable | None = None,
    ) -> None:
        rois = skeleton.proposals_test if proposals is None else proposals
        self.skeleton = skeleton
        self.num_classes = num_classes
        self.shape = shape or skeleton.padded_size
        self.proposals = rois if skeleton.layout.pooled else 0
        self.convention = convention
        self.layers = skeleton.searched_layers()
        self._conditions = CountingConditions(self.shape, self.proposals, convention)
        self.fixed = tuple(fixed_layers(skeleton, num_classes, self._conditions))
        self.latency = latency
        self.overhead = Cost()
        if latency is not None:
            latency.require(skeleton, num_classes, self.shape, self.proposals)
            timed = ((layer, latency.fixed_layer(layer.part, layer.name)) for layer in self.fixed)
            self.fixed = tuple(replace(layer, cost=replace(layer.cost, nanoseconds=time)) for layer, time in timed)
            self.overhead = Cost(nanoseconds=latency.overhead)

    @property
    def fixed_cost(self) -> Cost:
        """The cost of all that is not searched."""
        return sum((layer.cost for layer in self.fixed), self.overhead)

    def layer_cost(self, layer: SearchedLayer, name: str) -> Cost:
        """Return the cost of one searched layer with the operator called ``name``.

        Raises:
            InputError: If ``name`` is not an operator's, or the table of latencies lacks it.
        """
        operator = parse_operator(name)
        channels = (layer.in_channels, layer.out_channels, layer.stride)
        cost = self._conditions.shared(
            layer.input_strides, lambda size: operator_cost(operator, *channels, size, self.convention)
        )
        return cost if self.latency is None else replace(cost, nanoseconds=self.latency.layer(layer.label, name))

    def rows(self, sample: Mapping[str, str]) -> list[tuple[DetectorPart, str, str, Cost]]:
        """Return every layer of one architecture: part, layer name, operator name (empty if fixed), cost.

        Raises:
            KeyError: If ``sample`` lacks a searched layer.
        """
        rows: list[tuple[DetectorPart, str, str, Cost]] = [
            (layer.component, layer.label, sample[layer.label], self.layer_cost(layer, sample[layer.label]))
            for layer in self.layers
        ]
        rows += [(layer.part, f"{layer.part}/{layer.name}", "", layer.cost) for layer in self.fixed]
        return sorted(rows, key=lambda row: PARTS.index(row[0]))

    def architecture(self, sample: Mapping[str, str]) -> dict[str, Cost]:
        """Return the cost of one architecture by part, and the ``total``, to which what is measured adds the overhead.

        Args:
            sample: Operator name of each searched layer by its label.

        Raises:
            KeyError: If ``sample`` lacks a searched layer.
        """
        costs: dict[str, Cost] = {part: Cost() for part in PARTS}
        for part, _, _, cost in self.rows(sample):
            costs[part] += cost
        costs["total"] = sum(costs.values(), self.overhead)
        return costs
