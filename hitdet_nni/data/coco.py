"""Annotation files in COCO format: read, checked and counted before a search or a training starts.

Whatever mmdet, pycocotools or a training loop would trip over hours later, or would skip in silence, is refused here
with one line that names the file, the place inside it, the value and what is allowed. Reading is one plain loop over
the boxes, because COCO's training file has 860 thousand of them.

Source: https://cocodataset.org/#format-data; keys needed: ``mmdet.datasets.CocoDataset.parse_data_info`` and
``pycocotools.cocoeval.COCOeval`` (which needs ``area`` and ``iscrowd``).
"""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hitdet_nni.data.coco_dataset import CocoDataset as CocoDataset
from hitdet_nni.data.coco_dataset import CocoSummary
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

_LIMIT: Final = 1e9  # pixels; a coordinate beyond it, infinity and NaN included, is no coordinate
_ROUNDING: Final = 0.015  # pixels; COCO rounds coordinates to hundredths, so that edges may seem to lie outside

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100
_show = _brief.repr


@dataclass(frozen=True)
class _Source:
    """Where values come from, for error messages, and the defects that are to be passed over, if any are."""

    ann: Path
    key: str
    defects: list[InputError] | None = None
    passed_over: set[int] = field(default_factory=set)

    def refuse(self, defect: InputError) -> None:
        """Refuse a single entry of a list: raise its defect, or note it where entries are to be passed over."""
        if self.defects is None:
            raise defect
        self.defects.append(defect)

    def error(self, place: str | None, problem: str, allowed: str) -> InputError:
        return InputError(f"{problem} (named by {self.key})", source=self.ann, key=place, allowed=allowed)

    def of_type(self, place: str, holder: Mapping[str, Any], name: str, kind: type, allowed: str) -> Any:
        """The value of a key, which must be of exactly one type (so that true is no number)."""
        if name not in holder:
            raise self.error(f"{place}.{name}" if place else name, "is missing", allowed)
        value = holder[name]
        if type(value) is not kind:
            raise self.error(f"{place}.{name}" if place else name, f"is {_show(value)}", allowed)
        return value


def read_annotations(
    ann: Path, images: Path, *, key: str, allow_empty_boxes: bool = False, defects: list[InputError] | None = None
) -> CocoDataset:
    """Read a COCO annotation file and check everything but the pixels.

    Boxes partly outside their picture, crowd boxes and pictures without boxes are allowed, and counted.

    Args:
        ann: The annotation file.
        images: Folder that the file names are relative to.
        key: Dotted configuration key that names `ann`, such as ``"data.train_ann"``, for messages.
        allow_empty_boxes: Count boxes of zero width or height as ignored, instead of refusing them. COCO's own
            ``instances_train2017.json`` has two (annotations 918 and 2206849,
            https://github.com/cocodataset/cocoapi/issues/355); mmdet skips them.
        defects: Takes the defects of pictures, boxes and categories, which are then passed over instead of refused, to
            find them all.

    Returns:
        The data set, with classes in the order of their category ids.

    Raises:
        InputError: If the file cannot be read or holds anything that training could not survive.
    """
    source = _Source(ann, key, defects)
    data, constants = _parse(source)
    lists = {name: _entries(source, data, name) for name in ("images", "categories", "annotations")}
    names = _read_categories(source, lists["categories"])
    sizes, file_names = _read_images(source, lists["images"])
    image_classes, summary = _read_boxes(source, lists["annotations"], sizes, names, allow_empty_boxes)
    # The keys checked above name their place; this is for numbers anywhere else.
    if constants:
        problem = f"holds the number {constants[0]}"
        source.refuse(source.error(None, problem, "finite numbers, as the JSON standard has no others"))
    _check_on_disk(source, images, file_names)
    logger.info("%s: %d pictures, %d boxes, %d classes", ann, summary.pictures, summary.boxes, len(names))
    return CocoDataset(
        ann=ann,
        images=images,
        key=key,
        image_ids=tuple(sizes),
        file_names=file_names,
        sizes=tuple(sizes.values()),
        category_ids=tuple(sorted(names)),
        classes=summary.classes,
        file_category_ids=tuple(names),
        image_classes=image_classes,
        summary=summary,
    )


def _parse(source: _Source) -> tuple[dict[str, Any], list[str]]:
    """The top-level object, and the numbers in it that JSON does not have (NaN and infinities)."""
    constants: list[str] = []

    def note_constant(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        data = json.loads(source.ann.read_bytes(), parse_constant=note_constant)
    except OSError as error:
        raise source.error(None, f"cannot be read: {error.strerror}", "a COCO annotation file (JSON)") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        problem = f"is not JSON, or cut off: {error.msg}"
        raise source.error(place, problem, "a complete COCO annotation file (JSON)") from error
    except (ValueError, RecursionError) as error:
        raise source.error(None, f"is not JSON: {error}", "a COCO annotation file (JSON)") from error
    if type(data) is not dict:
        raise source.error(None, f"the top level is {_show(data)}", "an object with images, annotations and categories")
    return data, constants


def _entries(source: _Source, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    allowed = "a list of at least one object"
    entries: list[Any] = source.of_type("", data, name, list, allowed)
    if not entries:
        raise source.error(name, "is empty", allowed)
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            raise source.error(f"{name}[{index}]", f"is {_show(entry)}", "an object")
    return entries


def _read_categories(source: _Source, entries: list[dict[str, Any]]) -> dict[int, str]:
    """Class names by category id, in the order of the file."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        try:
            category_id: int = source.of_type(place, entry, "id", int, "an integer")
            name: str = source.of_type(place, entry, "name", str, "a class name")
            if category_id in names:
                raise source.error(
                    f"{place}.id", f"{_show(category_id)} is taken by {names[category_id]!r}", "unique ids"
                )
            if not name.strip():
                raise source.error(f"{place}.name", f"is {name!r}", "a class name")
            if name in names.values():
                raise source.error(f"{place}.name", f"{_show(name)} is taken by another category", "unique names")
        except InputError as defect:
            source.refuse(defect)
            continue
        names[category_id] = name
    return names


def _read_images(source: _Source, entries: list[dict[str, Any]]) -> tuple[dict[int, tuple[int, int]], tuple[str, ...]]:
    """Width and height by image id, and the file names, both in the order of the file."""
    sizes: dict[int, tuple[int, int]] = {}
    file_names: list[str] = []
    for index, entry in enumerate(entries):
        try:
            image_id, file_name, size = _read_image(source, f"images[{index}]", entry, sizes)
        except InputError as defect:
            source.refuse(defect)
            if type(entry.get("id")) is int:
                source.passed_over.add(entry["id"])
            continue
        sizes[image_id] = size
        file_names.append(file_name)
    return sizes, tuple(file_names)


def _read_image(
    source: _Source, place: str, entry: dict[str, Any], sizes: Mapping[int, tuple[int, int]]
) -> tuple[int, str, tuple[int, int]]:
    """Id, file name, width and height of a picture whose id is none of those in ``sizes``."""
    image_id: int = source.of_type(place, entry, "id", int, "an integer")
    if image_id in sizes:
        raise source.error(f"{place}.id", f"{_show(image_id)} is taken by another picture", "unique ids")
    file_name: str = source.of_type(place, entry, "file_name", str, "a path inside the folder of pictures")
    if not _stays_inside(file_name):
        problem = f"{_show(file_name)} leads outside the folder of pictures or names no file"
        raise source.error(f"{place}.file_name", problem, "a relative path without '..'")
    width, height = (
        source.of_type(place, entry, side, int, "a positive integer, in pixels") for side in ("width", "height")
    )
    for side, pixels in (("width", width), ("height", height)):
        if not 0 < pixels < _LIMIT:
            raise source.error(f"{place}.{side}", f"is {_show(pixels)}", "a positive integer, in pixels")
    return image_id, file_name, (width, height)


def _stays_inside(file_name: str) -> bool:
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:  # lone surrogates, which JSON can spell and no file system can
        return False
    path = PurePosixPath(file_name)
    return "\0" not in file_name and path.name != "" and not path.is_absolute() and ".." not in path.parts


def _read_boxes(
    source: _Source,
    entries: list[dict[str, Any]],
    sizes: Mapping[int, tuple[int, int]],
    names: Mapping[int, str],
    allow_empty: bool,
) -> tuple[dict[int, frozenset[int]], CocoSummary]:
    per_class: dict[int, int] = dict.fromkeys(names, 0)
    classes_of: dict[int, set[int]] = {image_id: set() for image_id in sizes}
    ids: set[int] = set()
    crowds = ignored = outside = small = large = 0
    for index, entry in enumerate(entries):
        box_id, image_id, category_id = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        box, crowd = entry.get("bbox"), entry.get("iscrowd")
        area: Any = entry.get("area")
        try:
            # Ids are compared by type too: 1.0 and true equal 1, yet pycocotools and mmdet print and store them.
            if type(box_id) is not int or box_id in ids:
                raise _box_error(source, index, entry, "id", "a unique integer")
            if type(image_id) is not int or image_id not in sizes:
                if type(image_id) is int and image_id in source.passed_over:
                    continue
                raise _box_error(source, index, entry, "image_id", "an id of images")
            if type(category_id) is not int or category_id not in per_class:
                raise _box_error(source, index, entry, "category_id", "an id of categories")
            if type(box) is not list or len(box) != 4 or not all(_is_number(value) for value in box):
                allowed = "four finite numbers: left, top, width, height, in pixels"
                raise _box_error(source, index, entry, "bbox", allowed)
            left, top, width, height = box
            if not (width > 0 and height > 0) and not (allow_empty and width >= 0 and height >= 0):
                raise _box_error(
                    source, index, entry, "bbox", "[left, top, width, height] of positive width and height"
                )
            image_width, image_height = sizes[image_id]
            right, bottom = left + width, top + height
            if left >= image_width or top >= image_height or (right <= 0 and width > 0) or (bottom <= 0 and height > 0):
                allowed = f"a box that reaches into its picture, {image_width} x {image_height} pixels (id {image_id})"
                raise _box_error(source, index, entry, "bbox", allowed)
            if not _is_number(area):
                raise _box_error(source, index, entry, "area", "a finite number, in square pixels")
            if type(crowd) is not int or crowd not in (0, 1):
                raise _box_error(source, index, entry, "iscrowd", "0 or 1")
        except InputError as defect:
            source.refuse(defect)
            continue
        ids.add(box_id)
        per_class[category_id] += 1
        classes_of[image_id].add(category_id)
        crowds += crowd
        ignored += not crowd and (width < 1 or height < 1 or area <= 0)
        outside += min(left, top) < -_ROUNDING or right > image_width + _ROUNDING or bottom > image_height + _ROUNDING
        small += area < 32**2
        large += area >= 96**2
    if crowds + ignored == len(ids):
        problem = f"has {crowds} crowd boxes and {ignored} without area, and no other"
        source.refuse(source.error("annotations", problem, "at least one box to learn from"))
    if 0 in ids:
        # pycocotools marks a found box by its id, so that it takes 0 for "not found".
        logger.warning("%s: COCO's evaluation counts the box with annotation id 0 as missed", source.ann)
    order = sorted(names)
    summary = CocoSummary(
        pictures=len(sizes),
        boxes=len(ids),
        classes=tuple(names[category_id] for category_id in order),
        boxes_per_class=tuple(per_class[category_id] for category_id in order),
        crowd_boxes=crowds,
        ignored_boxes=ignored,
        boxes_by_size=(small, len(ids) - small - large, large),
        boxes_partly_outside=outside,
        pictures_without_boxes=sum(not found for found in classes_of.values()),
    )
    return {image_id: frozenset(found) for image_id, found in classes_of.items()}, summary


def _is_number(value: object) -> bool:
    return (type(value) is float or type(value) is int) and -_LIMIT < value < _LIMIT


def _box_error(source: _Source, index: int, entry: Mapping[str, Any], name: str, allowed: str) -> InputError:
    problem = f"is {_show(entry[name])}" if name in entry else "is missing"
    return source.error(f"annotations[{index}].{name}", problem, allowed)


def _check_on_disk(source: _Source, images: Path, file_names: tuple[str, ...]) -> None:
    if not images.is_dir():
        raise source.error("images", f"their folder {images} does not exist", "a folder of pictures")
    root = Path(os.path.realpath(images))
    # One listing per folder: asking for 118 thousand files one by one takes minutes on a network drive.
    listings: dict[str, set[str]] = {}
    missing: list[int] = []
    for index, file_name in enumerate(file_names):
        path = PurePosixPath(file_name)
        folder = str(path.parent)
        if folder not in listings:
            try:
                listings[folder] = _names_inside(images / folder, root)
            except OSError:
                listings[folder] = set()
        if path.name not in listings[folder]:
            missing.append(index)
    if missing and source.defects is None:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise _missing_picture(source, missing[0], file_names, images, more)
    for index in missing:
        source.refuse(_missing_picture(source, index, file_names, images))


def _missing_picture(
    source: _Source, index: int, file_names: Sequence[str], images: Path, more: str = ""
) -> InputError:
    problem = f"{_show(file_names[index])} is not in {images}{more}"
    allowed = "names of existing pictures, which are no links out of that folder"
    return source.error(f"images[{index}].file_name", problem, allowed)


def _names_inside(folder: Path, root: Path) -> set[str]:
    """Names of a folder's files, without those that only a link out of ``root`` leads to."""
    if not Path(os.path.realpath(folder)).is_relative_to(root):
        return set()
    with os.scandir(folder) as found:
        return {
            entry.name
            for entry in found
            if entry.is_file()
            and not (entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root))
        }


def check_same_classes(train: CocoDataset, val: CocoDataset) -> None:
    """Check that two annotation files have the same categories in the same order.

    The order counts because mmdet numbers its labels in the order of each file.

    Raises:
        InputError: At the first category that differs.
    """
    train_names = dict(zip(train.category_ids, train.classes, strict=True))
    val_names = dict(zip(val.category_ids, val.classes, strict=True))
    source = _Source(val.ann, val.key)
    for category_id in sorted(train_names.keys() | val_names.keys()):
        wanted, found = (_show(names.get(category_id)) for names in (train_names, val_names))
        if wanted != found:
            problem = f"id {category_id} is {found} here and {wanted} in {train.ann}"
            raise source.error("categories", problem, f"the categories of {train.key}")
    if train.file_category_ids != val.file_category_ids:
        problem = f"are listed in another order than in {train.ann}"
        raise source.error("categories", problem, f"the order of {train.key}")
