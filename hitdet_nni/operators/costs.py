"""Parameters and FLOPs of single layers in closed form, from channels, strides and sizes alone.

FLOPs are multiply-adds at a stated input size and RoI count, counted by one of two declared conventions:

- ``macs``: the multiply-adds of convolutions, linear layers and other products of matrices, nothing else;
- ``paper``: the counter behind the published figures (old mmdetection): convolutions with their bias, linear layers
  without, 2 per batch-norm output, 1 per input of a ReLU module. Functional operations (the RPN's ReLU,
  interpolation, pooling, additions), RoIAlign and NMS are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Convention = Literal["macs", "paper"]
Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs (multiply-adds) of a layer or a sum of layers, and its time where that was measured."""

    params: int = 0
    flops: int = 0
    nanoseconds: int = 0

    @property
    def params_m(self) -> float:
        """Millions of parameters."""
        return self.params / 1e6

    @property
    def gflops(self) -> float:
        """Billions of FLOPs (multiply-adds)."""
        return self.flops / 1e9

    @property
    def latency_ms(self) -> float:
        """Milliseconds."""
        return self.nanoseconds / 1e6

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops, self.nanoseconds + other.nanoseconds)

    def times(self, count: int) -> Cost:
        """Return the cost of applying the same layer ``count`` times: FLOPs and time grow, the parameters do not."""
        return Cost(self.params, self.flops * count, self.nanoseconds * count)

    @classmethod
    def shared(cls, applications: Sequence[Cost]) -> Cost:
        """Return the cost of one layer that is applied to several maps: the parameters once, FLOPs and time of all.

        Args:
            applications: Its cost on each map, at least one.
        """
        total = sum(applications, cls())
        return cls(applications[0].params, total.flops, total.nanoseconds)


def halved(size: Size, stride: int) -> Size:
    """Return the output size of a padded layer: ``ceil(side / stride)``."""
    height, width = size
    return -(-height // stride), -(-width // stride)


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
    positions = output[0] * output[1]
    weights = kernel_size**2 * (in_channels // groups) * out_channels
    bias_terms = out_channels if bias else 0
    counted_bias = bias_terms if convention == "paper" else 0
    return Cost(weights + bias_terms, (weights + counted_bias) * positions)


def norm_relu_cost(channels: int, size: Size, convention: Convention, *, relu: bool) -> Cost:
    """Return the cost of a batch normalisation and, where present, the ReLU module behind it."""
    elements = channels * size[0] * size[1]
    counted = (3 if relu else 2) * elements if convention == "paper" else 0
    return Cost(2 * channels, counted)


def linear_cost(in_features: int, out_features: int) -> Cost:
    """Return the cost of a fully connected layer; neither convention counts its bias as FLOPs."""
    return Cost((in_features + 1) * out_features, in_features * out_features)
