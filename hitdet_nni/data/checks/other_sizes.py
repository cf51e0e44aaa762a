"""Images that have another size than their annotations say: whether the boxes are of the one or of the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hitdet_nni.data.annotations.coco_document import CocoDocument, Entry, is_number
from hitdet_nni.data.checks.rewriting import DIGITS, Change
from hitdet_nni.data.images.reading import wrong_size

Size = tuple[int, int]
"""Width and height in pixels."""

ROUNDING = 1.0
"""Pixels by which a resized side may be off."""

EVIDENCE = 0.1
"""Share of a file's boxes that reach out of their images from which on these were resized; one may be drawn loosely."""

OVER = 0.02
"""Share of a side by which a box may reach over an edge, as loosely drawn ones do."""


def other_sizes(document: CocoDocument, sizes: Mapping[int, Size]) -> tuple[list[Change], dict[int, str]]:
    """Return what is to be written of images whose annotated size is not theirs, and which of them cannot be mended.

    Where it is nearly right, or there are no boxes, the size alone is wrong; so it is where boxes reach out of the
    annotated size and not out of the image. Where images of a file were resized, and many of its boxes reach out of
    them, the boxes are of the annotated size, and are resized, too. All else is not for a program to decide: boxes of
    an enlarged, stretched or padded image lie in both, and how one was turned is not known.

    Args:
        document: The annotations.
        sizes: What images have, by ``id()`` of their entries; of those that can be read.

    Returns:
        Entries with key and new value, and what is wrong by ``id()`` of the entry.
    """
    boxes = _boxes(document)
    changes: list[Change] = []
    unclear: list[tuple[Entry, Size, Size, list[Entry]]] = []
    for entry in document.images:
        size, said, own = sizes.get(id(entry)), _said(entry), boxes[_key(entry.get("id"))]
        if size is None:
            continue
        if said is None or not own or _differ_hardly(said, size) or _frame(own, said, size) == "image":
            changes += _sized(entry, size)
        else:
            unclear.append((entry, said, size, own))
    resized = _are_resized([(own, said, size) for _, said, size, own in unclear if _is_resized(said, size)])
    broken: dict[int, str] = {}
    for entry, said, size, own in unclear:
        if resized and _is_resized(said, size):
            changes += _sized(entry, size)
            scale = size[0] / said[0], size[1] / said[1]
            changes += [change for each in own for change in _scaled(each, scale)]
        else:
            reach = _frame(own, said, size) == "said"
            doubt = "boxes reach out of the image" if reach else "boxes could be of either"
            broken[id(entry)] = f"{entry['file_name']!r} {wrong_size(size, said)}, and {doubt}"
    return changes, broken


def _are_resized(images: Sequence[tuple[list[Entry], Size, Size]]) -> bool:
    """Whether so many boxes of images with the ratio that is said reach out of them that they were resized."""
    lie = [_inside(box, size) or not _inside(box, said) for own, said, size in images for box in own]
    return bool(lie) and lie.count(False) >= EVIDENCE * len(lie)


def _differ_hardly(said: Size, size: Size) -> bool:
    return max(abs(said[0] - size[0]), abs(said[1] - size[1])) <= ROUNDING


def _frame(boxes: list[Entry], said: Size, size: Size) -> Literal["image", "said", "either"]:
    """Return what size the boxes are of that lie in one of both alone; those that lie in none say nothing."""
    lie = [(_inside(box, said), _inside(box, size)) for box in boxes]
    of_said, of_image = lie.count((True, False)), lie.count((False, True))
    if of_said and of_image:
        return "either"
    return "said" if of_said else "image" if of_image else "either"


def _key(number: object) -> object:
    return number if isinstance(number, int | str) else None


def _boxes(document: CocoDocument) -> dict[object, list[Entry]]:
    """Return the annotations of each image that have a box, by the image's id."""
    found: dict[object, list[Entry]] = defaultdict(list)
    for entry in document.annotations:
        box: Any = entry.get("bbox")
        if type(box) is list and len(box) == 4 and all(map(is_number, box)):
            found[_key(entry.get("image_id"))].append(entry)
    return found


def _said(entry: Entry) -> Size | None:
    width, height = entry.get("width"), entry.get("height")
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        return None
    return width, height


def _sized(entry: Entry, size: Size) -> list[Change]:
    return [
        (entry, key, pixels)
        for key, pixels in zip(("width", "height"), size, strict=True)
        if entry.get(key) != pixels or type(entry.get(key)) is not int
    ]


def _inside(entry: Entry, size: Size) -> bool:
    """Check whether a box reaches no further over the right or lower edge than people draw."""
    left, top, width, height = entry["bbox"]
    right, lower = (side + max(ROUNDING, OVER * side) for side in size)
    return bool(left + width <= right and top + height <= lower)


def _is_resized(said: Size, size: Size) -> bool:
    """Check whether both have one ratio, as far as whole pixels can."""
    height = said[1] * size[0] / said[0]
    width = said[0] * size[1] / said[1]
    return abs(height - size[1]) <= ROUNDING or abs(width - size[0]) <= ROUNDING


def _scaled(entry: Entry, scale: tuple[float, float]) -> list[Change]:
    """Return box, area and polygons of an annotation in pixels of the resized image."""
    box = [round(side * scale[at % 2], DIGITS) for at, side in enumerate(entry["bbox"])]
    changed: list[Change] = [(entry, "bbox", box)]
    area: Any = entry.get("area")
    if is_number(area):
        changed.append((entry, "area", round(area * scale[0] * scale[1], DIGITS)))
    polygons: Any = entry.get("segmentation")
    if type(polygons) is list and all(type(each) is list and all(map(is_number, each)) for each in polygons):
        resized = [[round(value * scale[at % 2], DIGITS) for at, value in enumerate(each)] for each in polygons]
        changed.append((entry, "segmentation", resized))
    return changed
