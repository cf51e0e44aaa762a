"""The objects of each class at the network's input against the detector's anchors: which it can find at all.

An object is out of reach where even the best-shaped anchor, laid centred on it, overlaps it (intersection over union)
by less than the detector's ``negative_iou``: wherever the object lies, training tells every anchor that nothing is
there. One whose shorter side is below the finest stride is out of reach as well: it fills no cell of any map.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.config.skeleton import ANCHOR_RATIOS, Skeleton
from hitdet_nni.data.checks.box_uses import BoxUses

_MOST_ENLARGED = 4  # times the network's input, beyond which a larger one is no advice


@dataclass(frozen=True)
class ObjectSizes:
    """The objects of one class; a side is the root of an object's area, in pixels of the network's input.

    Attributes:
        name: The class.
        boxes: Number of objects.
        smallest: Smallest side.
        median: Middle side.
        largest: Largest side.
        out_of_reach: Number of objects that no anchor can be taught to find, or that are thinner than the stride.
    """

    name: str
    boxes: int
    smallest: float
    median: float
    largest: float
    out_of_reach: int


def best_overlaps(sides: NDArray[np.float64], skeleton: Skeleton) -> NDArray[np.float64]:
    """Return the largest overlap of each object with an anchor of the detector that is centred on it.

    Args:
        sides: Width and height of objects in pixels of the network's input, ``[N, 2]``.
        skeleton: Gives the anchors.

    Returns:
        Intersection over union in [0, 1], ``[N]``: no anchor of the grid overlaps the object by more.
    """
    best: NDArray[np.float64] = np.max([_overlaps(sides, side) for side in skeleton.anchor_sides], axis=0)
    return best


def _overlaps(sides: NDArray[np.float64], anchor_side: float) -> NDArray[np.float64]:
    """Return the same of the anchors of one size."""
    width, height = sides.T
    best = np.zeros(len(sides))
    for ratio in ANCHOR_RATIOS:
        anchor_width, anchor_height = anchor_side / math.sqrt(ratio), anchor_side * math.sqrt(ratio)
        shared = np.minimum(width, anchor_width) * np.minimum(height, anchor_height)
        best = np.maximum(best, shared / (width * height + anchor_side**2 - shared))
    return best


def object_sizes(uses: BoxUses, names: Mapping[int, str], skeleton: Skeleton) -> tuple[ObjectSizes, ...]:
    """Return the sizes of the objects of every class that has any.

    Args:
        uses: The boxes of one split.
        names: Class names by category id.
        skeleton: Gives the anchors and the finest stride.
    """
    missed = _out_of_reach(uses.sides, skeleton)
    sides = np.sqrt(uses.sides.prod(axis=1))
    found = []
    for category_id, name in names.items():
        mine = uses.labels == category_id
        if mine.any():
            of_class = np.sort(sides[mine])
            smallest, median, largest = (round(float(of_class[place]), 1) for place in (0, len(of_class) // 2, -1))
            found.append(ObjectSizes(name, len(of_class), smallest, median, largest, int(missed[mine].sum())))
    return tuple(found)


def _out_of_reach(sides: NDArray[np.float64], skeleton: Skeleton) -> NDArray[np.bool_]:
    thin: NDArray[np.bool_] = sides.min(axis=1) < skeleton.pyramid_strides[0]
    return thin | (best_overlaps(sides, skeleton) < skeleton.layout.negative_iou)


def size_hints(uses: BoxUses, names: Mapping[int, str], skeleton: Skeleton) -> Iterator[str]:
    """Yield what to change for the classes at least half of whose objects are out of reach, a line a remedy.

    Args:
        uses: The boxes of one split.
        names: Class names by category id.
        skeleton: Gives the anchors and the finest stride.
    """
    missed = _out_of_reach(uses.sides, skeleton)
    by_reason: dict[str, list[_Missed]] = defaultdict(list)
    for category_id, name in names.items():
        mine = uses.labels == category_id
        count, total = int(missed[mine].sum()), int(mine.sum())
        if total and 2 * count >= total:
            width, height = (float(side) for side in np.median(uses.sides[mine & missed], axis=0))
            by_reason[_reason(width, height, skeleton)].append(_Missed(name, count, total, width, height))
    for reason, classes in by_reason.items():
        worst = max(classes, key=lambda one: one.count)
        who = f"class {worst.name!r}" if len(classes) == 1 else f"{len(classes)} classes, most in {worst.name!r}"
        what = f"{worst.count} of its {worst.total} objects, about {worst.width:.0f} x {worst.height:.0f} pixels"
        yield f"{who}: {what} at the network's input, cannot be found: {_advice(reason, worst, skeleton)}"


@dataclass(frozen=True)
class _Missed:
    """The objects of a class that are out of reach: how many of how many, and their median width and height."""

    name: str
    count: int
    total: int
    width: float
    height: float


def _reason(width: float, height: float, skeleton: Skeleton) -> str:
    if min(width, height) < skeleton.pyramid_strides[0]:
        return "thin"
    overlap, side = _best_size(width, height)
    if overlap < skeleton.layout.negative_iou:
        return "long"
    return "small" if side < skeleton.anchor_sides[0] else "large"


def _best_size(width: float, height: float) -> tuple[float, float]:
    """Return the largest overlap of an object with a centred anchor of any size, and that anchor's side."""
    sides = np.geomspace(min(width, height), max(width, height), 64)
    return max((float(_overlaps(np.array([[width, height]]), side)[0]), float(side)) for side in sides)


def _advice(reason: str, missed: _Missed, skeleton: Skeleton) -> str:
    smallest, largest, stride = skeleton.anchor_sides[0], skeleton.anchor_sides[-1], skeleton.pyramid_strides[0]
    if reason == "thin":
        thinner, advice = min(missed.width, missed.height), "cut the images into tiles"
        finest = skeleton.feature_strides[0]
        if thinner >= finest:
            return f"the finest stride is {stride} pixels; try skeleton.finest_stride {finest}"
        if thinner * _MOST_ENLARGED >= stride:
            size = [math.ceil(length * stride / thinner) for length in skeleton.input_size]
            advice = f"try skeleton.input_size {size}, or {advice}"
        return f"the finest stride is {stride} pixels; {advice}"
    _, side = _best_size(missed.width, missed.height)
    if reason == "small":
        scale = max(1, round(side / stride))
        return f"the smallest anchor is {smallest:.0f} pixels; try skeleton.anchor_scale {scale}"
    if reason == "large":
        scale = math.ceil(skeleton.anchor_scale * side / largest)
        return f"the largest anchor is {largest:.0f} pixels; try skeleton.anchor_scale {scale}"
    ratios = f"{min(ANCHOR_RATIOS):g} to {max(ANCHOR_RATIOS):g}"
    return f"height to width of the anchors is {ratios}, which no setting changes; boxes of parts may help"
