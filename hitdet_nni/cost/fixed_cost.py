"""Cost of the layers that are not searched, by kind of detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hitdet_nni.config.skeleton import ANCHOR_RATIOS, ROI_SIZE, SCALES_PER_OCTAVE, DetectorKind, Skeleton
from hitdet_nni.cost.counting import CountingConditions
from hitdet_nni.operators.costs import Cost, conv_cost, linear_cost, norm_relu_cost
from hitdet_nni.operators.family import Operator
from hitdet_nni.operators.registry import operator_cost

DetectorPart = Literal["backbone", "neck", "rpn", "head"]


@dataclass(frozen=True)
class FixedLayer:
    """A layer that is not searched, with its cost."""

    part: DetectorPart
    name: str
    cost: Cost


def fixed_layers(skeleton: Skeleton, num_classes: int, conditions: CountingConditions) -> Iterator[FixedLayer]:
    """Return all layers of a detector that are not searched.

    Args:
        skeleton: The detector's skeleton.
        num_classes: Object classes, without background.
        conditions: What FLOPs are counted for.
    """
    yield from _backbone(skeleton, conditions)
    yield from _neck(skeleton, conditions)
    yield from _BEHIND_THE_NECK[skeleton.detector](skeleton, num_classes, conditions)


def _backbone(skeleton: Skeleton, conditions: CountingConditions) -> Iterator[FixedLayer]:
    convention, size = conditions.convention, conditions.size(2)
    stem = conv_cost(3, skeleton.stem_channels, 3, size, convention, bias=True)
    stem += norm_relu_cost(skeleton.stem_channels, size, convention, relu=True)
    yield FixedLayer("backbone", "stem", stem)
    if skeleton.tail is not None:
        size, tail = conditions.size(skeleton.feature_strides[-1]), skeleton.tail
        cost = operator_cost(Operator("ir", 3, 1, 3), skeleton.widths[-1], tail.width, 1, size, convention)
        cost += conv_cost(tail.width, tail.out_channels, 1, size, convention)
        cost += norm_relu_cost(tail.out_channels, size, convention, relu=True)
        yield FixedLayer("backbone", "tail", cost)


def _neck(skeleton: Skeleton, conditions: CountingConditions) -> Iterator[FixedLayer]:
    extra = skeleton.extra_strides if skeleton.layout.extra_convs else ()
    for name, strides in (("fuse", skeleton.neck_strides[1:]), ("extra", extra)):
        for index, stride in enumerate(strides, start=1):
            size = conditions.size(stride)
            cost = conv_cost(skeleton.neck_width, skeleton.neck_width, 3, size, conditions.convention, bias=True)
            yield FixedLayer("neck", f"{name}{index}", cost)


def _two_stage(skeleton: Skeleton, num_classes: int, conditions: CountingConditions) -> Iterator[FixedLayer]:
    width, anchors, features = skeleton.neck_width, len(ANCHOR_RATIOS), skeleton.head_fc
    rpn = _shared_conv(skeleton, conditions, width, width, 3)
    rpn += _shared_conv(skeleton, conditions, width, anchors, 1)
    rpn += _shared_conv(skeleton, conditions, width, 4 * anchors, 1)
    yield FixedLayer("rpn", "rpn", rpn)
    fc = linear_cost(skeleton.head_width * ROI_SIZE**2, features)
    if conditions.convention == "paper":
        fc += Cost(flops=features)  # the ReLU module behind the fully connected layer
    fc += linear_cost(features, num_classes + 1)
    fc += linear_cost(features, 4 * num_classes)
    yield FixedLayer("head", "fc", fc.times(conditions.proposals))


def _one_stage(skeleton: Skeleton, num_classes: int, conditions: CountingConditions) -> Iterator[FixedLayer]:
    anchors = len(ANCHOR_RATIOS) * SCALES_PER_OCTAVE
    for name, outputs in (("classes", num_classes), ("boxes", 4)):
        yield FixedLayer("head", name, _shared_conv(skeleton, conditions, skeleton.head_width, anchors * outputs, 3))


_BEHIND_THE_NECK: Mapping[DetectorKind, Callable[[Skeleton, int, CountingConditions], Iterator[FixedLayer]]] = {
    "faster_rcnn": _two_stage,
    "retinanet": _one_stage,
}


def _shared_conv(
    skeleton: Skeleton, conditions: CountingConditions, in_channels: int, out_channels: int, kernel_size: int
) -> Cost:
    """Return the cost of one convolution with bias on every level of the pyramid."""
    return conditions.shared(
        skeleton.pyramid_strides,
        lambda size: conv_cost(in_channels, out_channels, kernel_size, size, conditions.convention, bias=True),
    )
