"""Forms in which boxes are written besides COCO's ``[left, top, width, height]``: by their corners, as polygons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any, Final

from hitdet_nni.data.annotations.coco_document import Entry, is_number

FEWEST: Final = 5
"""Boxes below which nothing is concluded from where they lie."""

BEYOND: Final = 2.0
"""Pixels by which a box may reach over an edge without being remarked."""

_MISFITS: Final = 0.01  # share of boxes that may be no corners where all others are
_REMARKABLE: Final = 0.1  # share of boxes that reach over the right or the lower edge
_CERTAIN: Final = 0.5  # share of boxes that do so by a tenth of their side
_NEARLY_ALL: Final = 0.9


@dataclass(frozen=True)
class CornerBoxes:
    """Boxes that can all be read as left, top, right and bottom.

    Attributes:
        boxes: Number of boxes.
        beyond: Boxes that reach over the right or the lower edge of their image when they are read as COCO's.
        certain: Whether they can be nothing else than corners: hardly any ``area`` is width times height, and nearly
            every one is that between the corners or half of the boxes reach over an edge by a tenth of their side.
        by_area: Whether nearly every ``area`` is that between the corners.
    """

    boxes: int
    beyond: int
    certain: bool
    by_area: bool


def corner_boxes(images: Sequence[Entry], annotations: Sequence[Entry]) -> CornerBoxes | None:
    """Tell whether boxes seem to be left, top, right and bottom.

    They do if all of them (less one in a hundred) lie inside their images so, and either areas say it or many would
    reach over an edge as left, top, width and height. Of a sound set most boxes lie farther from the left or the upper
    edge than they are wide or high, so that a look at the first of them is enough.

    Args:
        images: Entries of images, of which nothing is known.
        annotations: Entries of boxes, of which nothing is known; without numbers for box and image one is passed over.

    Returns:
        What was found; ``None``: they are no corners, or nothing speaks for it.
    """
    sizes = {
        entry["id"]: (entry["width"], entry["height"])
        for entry in images
        if all(is_number(entry.get(key)) for key in ("id", "width", "height"))
    }
    boxes = misfits = beyond = far = areas = between_corners = of_sides = 0
    for entry in annotations:
        box, area, image_id = entry.get("bbox"), entry.get("area"), entry.get("image_id")
        size = sizes.get(image_id) if isinstance(image_id, int | float) else None
        if size is None or not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            continue
        boxes += 1
        left, top, right, bottom = box
        across, down = size[0] + BEYOND, size[1] + BEYOND
        if not (-BEYOND <= left <= right <= across and -BEYOND <= top <= bottom <= down):
            misfits += 1
            if misfits > _MISFITS * len(annotations):
                return None
        beyond += left + right > across or top + bottom > down
        far += left + 0.9 * right > across or top + 0.9 * bottom > down
        if is_number(area):
            areas += 1
            between_corners += _is_about(area, (right - left) * (bottom - top))
            of_sides += _is_about(area, right * bottom)
    if boxes < FEWEST or misfits > _MISFITS * boxes:
        return None
    contradicted = of_sides > (1 - _NEARLY_ALL) * areas
    by_area = areas >= FEWEST and between_corners >= _NEARLY_ALL * areas and not contradicted
    certain = by_area or (far >= max(FEWEST, _CERTAIN * boxes) and not contradicted)
    if not certain and beyond < max(FEWEST, _REMARKABLE * boxes):
        return None
    return CornerBoxes(boxes, beyond, certain, by_area)


def _is_about(area: Any, product: float) -> bool:
    return isclose(area, product, rel_tol=0.01, abs_tol=0.5)


def box_around(coordinates: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom of a polygon.

    Args:
        coordinates: ``x, y, x, y, ...`` of its corners.
    """
    across, down = coordinates[::2], coordinates[1::2]
    return min(across), min(down), max(across), max(down)
