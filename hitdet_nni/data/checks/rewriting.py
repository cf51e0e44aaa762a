"""What ``check-data --fix`` writes in place of what other formats than COCO's have: each a value of an entry.

The functions yield entry, key and new value; they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from hitdet_nni.data.annotations.box_forms import box_around, corner_boxes
from hitdet_nni.data.annotations.class_names import in_one_line, is_one_line
from hitdet_nni.data.annotations.coco_document import CocoDocument, Entry, is_number
from hitdet_nni.data.images.image_folder import ImageFolder, stays_inside

Change = tuple[Entry, str, object]
"""Entry, key and new value."""

DIGITS = 2
"""Decimals of a pixel that sides are rounded to, as COCO's are."""


def files_of_urls(document: CocoDocument, folder: ImageFolder) -> Iterator[Change]:
    """Yield the file name of each image that has a ``coco_url`` alone, as LVIS's have.

    It is the last two parts of the path, or else the last, whichever lies on disk.
    """
    for entry in document.images:
        url = entry.get("coco_url")
        if "file_name" in entry or type(url) is not str:
            continue
        names = [str(PurePosixPath(*PurePosixPath(url).parts[-count:])) for count in (2, 1)]
        found = next((name for name in names if stays_inside(name) and folder.holds(name)), None)
        if found is not None:
            yield entry, "file_name", found


def numbers_of_images(document: CocoDocument) -> Iterator[Change]:
    """Yield numbers from 1 in place of the ids of all images, where some are texts, and each one to itself."""
    ids = [entry.get("id") for entry in document.images]
    told_apart = len({each for each in ids if type(each) in (int, str)}) == len(ids)
    if not told_apart or not any(type(each) is str for each in ids):
        return
    numbers = {each: number for number, each in enumerate(ids, 1)}
    for entry, number in zip(document.images, numbers.values(), strict=True):
        yield entry, "id", number
    for entry in document.annotations:
        image = entry.get("image_id")
        if type(image) in (int, str) and image in numbers:
            yield entry, "image_id", numbers[image]


def boxes_of_polygons(document: CocoDocument) -> Iterator[Change]:
    """Yield the box around the polygons of each annotation that has no box."""
    for entry in document.annotations:
        polygons: Any = entry.get("segmentation")
        if "bbox" not in entry and type(polygons) is list and polygons and all(map(_is_polygon, polygons)):
            corners = [float(value) for polygon in polygons for value in polygon]
            yield entry, "bbox", _sides(*box_around(corners))


def boxes_of_corners(document: CocoDocument) -> Iterator[Change]:
    """Yield each box as left, top, width and height, where all are certainly left, top, right and bottom."""
    corners = corner_boxes(document.images, document.annotations)
    if corners is None or not corners.certain:
        return
    for entry in document.annotations:
        box: Any = entry.get("bbox")
        if type(box) is list and len(box) == 4 and all(map(is_number, box)):
            yield entry, "bbox", _sides(*box)


def names_in_one_line(document: CocoDocument) -> Iterator[Change]:
    """Yield class names with a space in place of line breaks and other control characters."""
    for entry in document.categories:
        name = entry.get("name")
        if type(name) is str and not is_one_line(name):
            yield entry, "name", in_one_line(name)


def _is_polygon(values: object) -> bool:
    return type(values) is list and len(values) >= 6 and len(values) % 2 == 0 and all(map(is_number, values))


def _sides(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, round(right - left, DIGITS), round(bottom - top, DIGITS)]
