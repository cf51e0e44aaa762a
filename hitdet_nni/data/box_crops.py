"""The boxes of a detection set as images for classification: which there are. None is decoded here.

What cuts and loads them is in :mod:`hitdet_nni.data.datasets.classification`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.checks.box_uses import is_dropped
from hitdet_nni.data.class_folders import ClassificationData, LabeledImages
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

CONTEXT = 1.5
"""Side of the square that is cut out around a box, relative to the longer side of the box."""

MIN_SIDE = 8
"""Longer side in pixels of the image from which a box shows enough of its object to be classified."""


@dataclass(frozen=True)
class LabeledBoxes(LabeledImages):
    """The boxes of one split.

    Attributes:
        root: The folder of the images.
        classes: Class names as the detector numbers its labels.
        files: Path inside ``root`` of the image of each box.
        labels: Class of each box.
        squares: Left, top, right and bottom of the square around each box, in pixels of its image, which it may reach
            out of, ``[N, 4]``.
        flip: Whether a mirrored object is still one of its class, as ``data.flip`` says.
        cache_bytes: Room for squares that have been cut out and resized, as ``data.cache_mb`` gives it.
    """

    squares: NDArray[np.int64]
    flip: bool
    cache_bytes: int


def open_boxes(data: DetectionData, settings: Settings, image_ids: Collection[int] | None = None) -> ClassificationData:
    """List the boxes of both splits that a classifier can learn from, or be measured by.

    Crowds, ignored boxes and those that training drops are left out, and so are those of less than
    :data:`MIN_SIDE` pixels.

    Args:
        data: Checked images.
        settings: Give ``data.flip`` and ``data.cache_mb``.
        image_ids: Ids of the training images whose boxes are listed; by default all.

    Raises:
        InputError: If a split has no such box.
    """
    train = list_boxes(data.train, data.classes, settings, image_ids)
    val = list_boxes(data.val, data.classes, settings)
    found = set(train.labels)
    missing = [name for label, name in enumerate(data.classes) if label not in found]
    if missing:
        kinds = counted(len(missing), "{class has|classes have} no box that is large enough to learn from")
        first = f": {missing[0]}" if len(missing) == 1 else f"; the first of them: {missing[0]}"
        logger.info("pretrain.boxes: %s%s", kinds, first)
    return ClassificationData(train, val)


def list_boxes(
    annotations: CocoAnnotations, classes: tuple[str, ...], settings: Settings, image_ids: Collection[int] | None = None
) -> LabeledBoxes:
    """List the boxes of one split, in the order of its file.

    Args:
        annotations: A checked annotation file; it is read once more.
        classes: Class names in the order of the labels.
        settings: As :func:`open_boxes`.
        image_ids: As :func:`open_boxes`.

    Raises:
        InputError: If no box is left.
    """
    entries: list[Mapping[str, Any]] = json.loads(annotations.ann.read_bytes())["annotations"]
    places = {image_id: place for place, image_id in enumerate(annotations.image_ids)}
    if image_ids is not None:
        places = {image_id: places[image_id] for image_id in image_ids}
    names = dict(zip(annotations.category_ids, annotations.classes, strict=True))
    files, labels, squares = [], [], []
    for entry in entries:
        place = places.get(entry["image_id"])
        name = names.get(entry["category_id"])
        if place is None or name is None or entry["iscrowd"] or is_dropped(entry, annotations.sizes[place]):
            continue
        square = _square(entry["bbox"], annotations.sizes[place])
        if square is not None:
            files.append(annotations.file_names[place])
            labels.append(classes.index(name))
            squares.append(square)
    if not squares:
        problem = f"has no box of {MIN_SIDE} pixels or more to classify"
        raise InputError(problem, source=annotations.source, key="pretrain.boxes", allowed="false")
    return LabeledBoxes(
        annotations.images,
        classes,
        tuple(files),
        tuple(labels),
        np.array(squares, dtype=np.int64),
        settings.data.flip,
        settings.data.cache_mb * 10**6,
    )


def _square(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the square around the part of a box inside its image; ``None`` where that is too small.

    Args:
        box: Left, top, width and height in pixels.
        size: Width and height of the image.
    """
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    longer = max(right - left, bottom - top)
    if longer < MIN_SIDE:
        return None
    side = round(CONTEXT * longer)
    across, down = round((left + right - side) / 2), round((top + bottom - side) / 2)
    return across, down, across + side, down + side
