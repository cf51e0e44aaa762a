"""Parameters and FLOPs of single layers and operators in closed form, from channels, strides and sizes alone.

FLOPs are multiply-adds at a stated input size and RoI count, counted by one of two declared conventions:

- ``macs``: the multiply-adds of convolutions and linear layers, nothing else;
- ``paper``: the counter behind the published figures (old mmdetection): convolutions with their bias, linear layers
  without, 2 per batch-norm output, 1 per input of a ReLU module. Functional operations (the RPN's ReLU,
  interpolation, pooling, additions), RoIAlign and NMS are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from hitdet_nni.config.operators import Operator
from hitdet_nni.config.skeleton import ROI_SIZE

Convention = Literal["macs", "paper"]
Size = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs (multiply-adds) of a layer or a sum of layers."""

    params: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops)

    def times(self, count: int) -> Cost:
        """Return the cost of applying the same layer ``count`` times: the FLOPs grow, the parameters do not."""
        return Cost(self.params, self.flops * count)


@dataclass(frozen=True)
class Measure:
    """What FLOPs are counted for, and how.

    Attributes:
        shape: Rows and columns of the network's input.
        proposals: RoIs that the head sees per picture.
        convention: What is counted.
    """

    shape: Size
    proposals: int
    convention: Convention

    def size(self, reduction: int) -> Size:
        """Return the rows and columns of a map whose side is the picture's divided by ``reduction``."""
        return halved(self.shape, reduction)

    def shared(self, reductions: Iterable[int], cost_at: Callable[[Size], Cost]) -> Cost:
        """Return the cost of a layer that is applied to several maps: the parameters once, the FLOPs of all.

        Args:
            reductions: Ratio of the picture's side to that of each map; none stands for all pooled RoIs.
            cost_at: Cost of the layer on a map of the given size.
        """
        costs = [cost_at(self.size(reduction)) for reduction in reductions]
        if not costs:
            return cost_at((ROI_SIZE, ROI_SIZE)).times(self.proposals)
        return Cost(costs[0].params, sum(cost.flops for cost in costs))


def halved(size: Size, stride: int) -> Size:
    """Return the output size of a padded layer: ``ceil(side / stride)``."""
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
    """Return the cost of a convolution with the given output size (square kernel)."""
    places = output[0] * output[1]
    weights = kernel_size**2 * (in_channels // groups) * out_channels
    bias_terms = out_channels if bias else 0
    counted_bias = bias_terms if convention == "paper" else 0
    return Cost(weights + bias_terms, (weights + counted_bias) * places)


def norm_relu_cost(channels: int, size: Size, convention: Convention, *, relu: bool) -> Cost:
    """Return the cost of a batch normalisation and, where present, the ReLU module behind it."""
    elements = channels * size[0] * size[1]
    counted = (3 if relu else 2) * elements if convention == "paper" else 0
    return Cost(2 * channels, counted)


def linear_cost(in_features: int, out_features: int) -> Cost:
    """Return the cost of a fully connected layer; neither convention counts its bias as FLOPs."""
    return Cost((in_features + 1) * out_features, in_features * out_features)


def operator_cost(
    operator: Operator, in_channels: int, out_channels: int, stride: int, size: Size, convention: Convention
) -> Cost:
    """Return the cost of one operator.

    Args:
        operator: The operator, e.g. of :func:`hitdet_nni.config.operators.parse_operator`.
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
