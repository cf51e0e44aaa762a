"""Parameters and FLOPs of every layer in closed form, from channels, strides and the input size alone.

One table serves an architecture's cost and the expected cost under architecture parameters (Eq. 7). FLOPs are
multiply-adds at a stated input size and RoI count, counted by one of two declared conventions:

- ``macs``: the multiply-adds of convolutions and linear layers, nothing else;
- ``paper``: the counter behind the published figures (old mmdetection): convolutions with their bias, linear layers
  without, 2 per batch-norm output, 1 per input of a ReLU module. Functional operations (the RPN's ReLU,
  interpolation, pooling, additions), RoIAlign and NMS are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hitdet_nni.errors import InputError
from hitdet_nni.model.operators import Operator, parse_operator
from hitdet_nni.skeleton import COMPONENTS, ROI_SIZE, Component, SearchedLayer, Skeleton

Convention = Literal["macs", "paper"]
Part = Literal["backbone", "neck", "rpn", "head"]
PARTS: tuple[Part, ...] = ("backbone", "neck", "rpn", "head")
Size = tuple[int, int]
"""Rows and columns."""

ANCHORS = 3
"""Anchors per place of the RPN: one scale, three ratios."""


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs (multiply-adds) of a layer or a sum of layers."""

    params: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops)

    def times(self, count: int) -> Cost:
        """The cost of applying the same layer ``count`` times: the FLOPs grow, the parameters do not."""
        return Cost(self.params, self.flops * count)


def halved(size: Size, stride: int) -> Size:
    """Output size of a padded layer: ``ceil(side / stride)``."""
    rows, columns = size
    return -(-rows // stride), -(-columns // stride)


def conv_cost(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    output: Size,
    convention: Convention,
    *,
    groups: int = 1,
    bias: bool = False,
) -> Cost:
    """Cost of a convolution with the given output size (square kernel)."""
    places = output[0] * output[1]
    weights = kernel_size**2 * (in_channels // groups) * out_channels
    bias_terms = out_channels if bias else 0
    counted_bias = bias_terms if convention == "paper" else 0
    return Cost(weights + bias_terms, (weights + counted_bias) * places)


def norm_relu_cost(channels: int, size: Size, convention: Convention, *, relu: bool) -> Cost:
    """Cost of a batch normalisation and, where present, the ReLU module behind it."""
    elements = channels * size[0] * size[1]
    counted = (3 if relu else 2) * elements if convention == "paper" else 0
    return Cost(2 * channels, counted)


def linear_cost(in_features: int, out_features: int) -> Cost:
    """Cost of a fully connected layer; neither convention counts its bias as FLOPs."""
    return Cost((in_features + 1) * out_features, in_features * out_features)


def operator_cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Cost of one operator.

    Args:
        operator: The operator, e.g. of :func:`hitdet_nni.model.operators.parse_operator`.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: 1 or 2.
        size: Rows and columns of its input.
        convention: How FLOPs are counted.
    """
    output = halved(size, stride)
    kernel_size = operator.kernel_size
    if operator.family == "conv":
        return conv_cost(in_channels, out_channels, kernel_size, output, convention) + norm_relu_cost(
            out_channels, output, convention, relu=True
        )
    hidden = in_channels * operator.expansion
    cost = Cost()
    if operator.family == "ir":
        cost += conv_cost(in_channels, hidden, 1, size, convention)
        cost += norm_relu_cost(hidden, size, convention, relu=True)
    cost += conv_cost(hidden, hidden, kernel_size, output, convention, groups=hidden)
    cost += norm_relu_cost(hidden, output, convention, relu=True)
    cost += conv_cost(hidden, out_channels, 1, output, convention)
    return cost + norm_relu_cost(out_channels, output, convention, relu=False)


@dataclass(frozen=True)
class FixedLayer:
    """A layer that is not searched, with its cost."""

    part: Part
    name: str
    cost: Cost


class CostModel:
    """Costs of all layers of a skeleton, for every operator where a layer is searched.

    Args:
        skeleton: The parts that are not searched.
        num_classes: Object classes, without background.
        shape: Rows and columns of the network's input; the skeleton's input size by default.
        proposals: RoIs that the head sees per picture; the skeleton's number in testing by default.
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
        self.skeleton = skeleton
        self.num_classes = num_classes
        self.shape = shape or skeleton.input_size
        self.proposals = skeleton.proposals_test if proposals is None else proposals
        self.convention = convention
        self.layers = skeleton.searched_layers()
        self.fixed = tuple(self._fixed_layers())

    def _size(self, reduction: int) -> Size:
        return halved(self.shape, reduction)

    def layer_cost(self, layer: SearchedLayer, name: str) -> Cost:
        """Cost of one searched layer with the operator called ``name``.

        Raises:
            InputError: If ``name`` is not an operator's.
        """
        operator = parse_operator(name)
        channels = (layer.in_channels, layer.out_channels, layer.stride)
        if layer.component == "head":
            cost = operator_cost(operator, *channels, (ROI_SIZE, ROI_SIZE), self.convention)
            return cost.times(self.proposals)
        return operator_cost(operator, *channels, self._size(layer.reduction), self.convention)

    def _fixed_layers(self) -> Iterator[FixedLayer]:
        skeleton, convention = self.skeleton, self.convention
        stem = conv_cost(3, skeleton.stem_channels, 3, self._size(2), convention, bias=True)
        stem += norm_relu_cost(skeleton.stem_channels, self._size(2), convention, relu=True)
        yield FixedLayer("backbone", "stem", stem)
        if skeleton.tail is not None:
            size, tail = self._size(skeleton.feature_reductions[-1]), skeleton.tail
            cost = operator_cost(Operator("ir", 3, 1, 3), skeleton.widths[-1], tail.width, 1, size, convention)
            cost += conv_cost(tail.width, tail.out_channels, 1, size, convention)
            cost += norm_relu_cost(tail.out_channels, size, convention, relu=True)
            yield FixedLayer("backbone", "tail", cost)
        width = skeleton.neck_width
        for index, reduction in enumerate(skeleton.feature_reductions[1:], start=1):
            cost = conv_cost(width, width, 3, self._size(reduction), convention, bias=True)
            yield FixedLayer("neck", f"fuse{index}", cost)
        yield FixedLayer("rpn", "rpn", self._rpn_cost())
        yield FixedLayer("head", "fc", self._fc_cost())

    def _rpn_cost(self) -> Cost:
        width = self.skeleton.neck_width
        reductions = self.skeleton.feature_reductions
        total = Cost()
        for reduction in (*reductions, 2 * reductions[-1]):
            size = self._size(reduction)
            level = conv_cost(width, width, 3, size, self.convention, bias=True)
            for outputs in (ANCHORS, 4 * ANCHORS):
                level += conv_cost(width, outputs, 1, size, self.convention, bias=True)
            # The levels share the parameters.
            total = Cost(level.params, total.flops + level.flops)
        return total

    def _fc_cost(self) -> Cost:
        skeleton, features = self.skeleton, self.skeleton.head_fc
        cost = linear_cost(skeleton.head_width * ROI_SIZE**2, features)
        if self.convention == "paper":
            cost += Cost(flops=features)  # the ReLU module behind the fully connected layer
        cost += linear_cost(features, self.num_classes + 1)
        cost += linear_cost(features, 4 * self.num_classes)
        return cost.times(self.proposals)

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
