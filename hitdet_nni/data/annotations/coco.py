"""Annotation files in COCO format: read, checked and counted before a search or a training starts.

Whatever mmdet, pycocotools or a training loop would trip over hours later, or would skip in silence, is refused here
with one line that names the file, the place inside it, the value and what is allowed. Reading is one plain loop over
the boxes, because COCO's training file has 860 thousand of them.

Source: https://cocodataset.org/#format-data; keys needed: ``mmdet.datasets.CocoDataset.parse_data_info`` and
``pycocotools.cocoeval.COCOeval`` (which needs ``area`` and ``iscrowd``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hitdet_nni.data.annotations.box_forms import CornerBoxes, corner_boxes
from hitdet_nni.data.annotations.class_names import NAME, is_one_line
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations as CocoAnnotations
from hitdet_nni.data.annotations.coco_annotations import CocoSummary
from hitdet_nni.data.annotations.coco_document import (
    FIX,
    MOST,
    CocoDocument,
    DocumentSource,
    cache_folder,
    is_number,
    read_document,
    show,
    write_canonical,
)
from hitdet_nni.data.annotations.normalization import Changes, normalize, renumber_annotations
from hitdet_nni.data.images.image_folder import ImageFolder, stays_inside
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

_ID_BITS: Final = 63  # pycocotools keeps ids in arrays of 64 bits


def read_annotations(
    ann: Path, images: Path, *, key: str, allow_empty_boxes: bool = False, defects: list[InputError] | None = None
) -> CocoAnnotations:
    """Read a COCO annotation file and check everything but the pixels.

    Boxes partly outside their image, crowd boxes and images without boxes are allowed.

    Args:
        ann: The annotation file.
        images: Folder that the file names are relative to.
        key: Dotted configuration key that names `ann`, such as ``"data.train_ann"``, for messages.
        allow_empty_boxes: Allow boxes of zero width or height, instead of refusing them. COCO's own
            ``instances_train2017.json`` has two (annotations 918 and 2206849,
            https://github.com/cocodataset/cocoapi/issues/355); mmdet skips them.
        defects: Takes the defects of images, boxes and categories, which are then passed over instead of refused, to
            find them all.

    Returns:
        The data set, with classes in the order of their category ids.

    Raises:
        InputError: If the file cannot be read or holds anything that training could not survive.
    """
    source = DocumentSource(ann, key, defects)
    return check_document(source, read_document(source), images, allow_empty_boxes=allow_empty_boxes)


def check_document(
    source: DocumentSource, document: CocoDocument, images: Path, *, allow_empty_boxes: bool = False
) -> CocoAnnotations:
    """Check a document that has been parsed, as :func:`read_annotations` does.

    Args:
        source: Where it comes from.
        document: The document, which becomes what it means (:mod:`hitdet_nni.data.annotations.normalization`).
        images: As :func:`read_annotations`.
        allow_empty_boxes: As :func:`read_annotations`.

    Raises:
        InputError: As :func:`read_annotations`.
    """
    folder, changes = ImageFolder(images), Changes()
    corners = corner_boxes(document.images, document.annotations)  # before areas are filled in
    root = normalize(document, folder, changes)
    names = _read_categories(source, document.categories)
    sizes, file_names = _read_images(source, document.images)
    image_classes, summary = _read_boxes(source, document.annotations, sizes, names, allow_empty_boxes)
    if corners is not None and corners.certain:
        source.refuse(_corner_error(source, corners))
    _check_on_disk(source, folder, file_names)
    ann = source.ann
    if not source.defects:
        renumber_annotations(document, changes)
        if changes:
            ann = write_canonical(document, cache_folder() / "annotations", file_names)
    notes = (*document.notes, *(f"{source.ann}: {note}" for note in changes.notes()))
    for note in notes:
        logger.info("%s", note)
    amounts = {"{image|images}": summary.images, "{box|boxes}": summary.boxes, "{class|classes}": len(names)}
    logger.info("%s: %s", source.ann, ", ".join(counted(count, what) for what, count in amounts.items()))
    return CocoAnnotations(
        ann=ann,
        images=images,
        key=source.key,
        image_ids=tuple(sizes),
        file_names=file_names,
        sizes=tuple(sizes.values()),
        category_ids=tuple(sorted(names)),
        classes=summary.classes,
        file_category_ids=tuple(names),
        image_classes=image_classes,
        summary=summary,
        source=Path(document.parts[0]) if len(document.parts) == 1 else source.ann,
        left_out=None if root is None else (root["id"], root["name"]),
        notes=notes,
    )


def _read_categories(source: DocumentSource, entries: list[dict[str, Any]]) -> dict[int, str]:
    """Return the class names by category id, in the order of the file."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        try:
            category_id: int = source.of_type(place, entry, "id", int, "an integer")
            _fits(source, place, category_id)
            name: str = source.of_type(place, entry, "name", str, "a class name")
            if category_id in names:
                raise source.error(
                    f"{place}.id", f"{show(category_id)} is taken by {names[category_id]!r}", "unique ids"
                )
            if not name.strip():
                raise source.error(f"{place}.name", f"is {name!r}", "a class name")
            if not is_one_line(name):
                allowed = f"{NAME}, as {FIX} writes it"
                raise source.error(f"{place}.name", f"is {show(name)}", allowed)
            if name in names.values():
                raise source.error(f"{place}.name", f"{show(name)} is taken by another category", "unique names")
        except InputError as defect:
            source.refuse(defect)
            _pass_over(source.categories_passed_over, entry)
            continue
        names[category_id] = name
    return names


def _read_images(
    source: DocumentSource, entries: list[dict[str, Any]]
) -> tuple[dict[int, tuple[int, int]], tuple[str, ...]]:
    """Return the width and height by image id, and the file names, both in the order of the file."""
    sizes: dict[int, tuple[int, int]] = {}
    file_names: list[str] = []
    for index, entry in enumerate(entries):
        try:
            image_id, file_name, size = _read_image(source, f"images[{index}]", entry, sizes)
        except InputError as defect:
            source.refuse(defect)
            _pass_over(source.images_passed_over, entry)
            continue
        sizes[image_id] = size
        file_names.append(file_name)
    return sizes, tuple(file_names)


def _pass_over(ids: set[int], entry: dict[str, Any]) -> None:
    """Remember the id of an entry that was refused: what refers to it has no defect of its own."""
    if type(entry.get("id")) is int:
        ids.add(entry["id"])


def _read_image(
    source: DocumentSource, place: str, entry: dict[str, Any], sizes: Mapping[int, tuple[int, int]]
) -> tuple[int, str, tuple[int, int]]:
    """Return the id, file name, width and height of an image whose id is none of those in ``sizes``."""
    image_id: int = source.of_type(place, entry, "id", int, "an integer")
    _fits(source, place, image_id)
    if image_id in sizes:
        raise source.error(f"{place}.id", f"{show(image_id)} is taken by another image", "unique ids")
    allowed = "a path inside the folder of images"
    if "file_name" not in entry and "coco_url" in entry:
        allowed += f", as {FIX} takes it from coco_url"
    file_name: str = source.of_type(place, entry, "file_name", str, allowed)
    if not stays_inside(file_name):
        problem = f"{show(file_name)} leads outside the folder of images or names no file"
        raise source.error(f"{place}.file_name", problem, "a relative path without '..'")
    width, height = (
        source.of_type(place, entry, side, int, "a positive integer, in pixels") for side in ("width", "height")
    )
    for side, pixels in (("width", width), ("height", height)):
        if not 0 < pixels < MOST:
            raise source.error(f"{place}.{side}", f"is {show(pixels)}", "a positive integer, in pixels")
    return image_id, file_name, (width, height)


def _fits(source: DocumentSource, place: str, number: int) -> None:
    if number.bit_length() > _ID_BITS:
        raise source.error(f"{place}.id", f"is {show(number)}", "an integer of at most 64 bits")


def _read_boxes(
    source: DocumentSource,
    entries: list[dict[str, Any]],
    sizes: Mapping[int, tuple[int, int]],
    names: Mapping[int, str],
    allow_empty: bool,
) -> tuple[dict[int, frozenset[int]], CocoSummary]:
    per_class: dict[int, int] = dict.fromkeys(names, 0)
    classes_of: dict[int, set[int]] = {image_id: set() for image_id in sizes}
    ids: set[int] = set()
    refused = crowds = ignored = shares = small = large = 0
    for index, entry in enumerate(entries):
        box_id, image_id, category_id = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        box, crowd = entry.get("bbox"), entry.get("iscrowd")
        area: Any = entry.get("area")
        try:
            # Ids are compared by type too: 1.0 and true equal 1, yet pycocotools and mmdet print and store them.
            if type(box_id) is not int or box_id in ids:
                raise _box_error(source, index, entry, "id", "a unique integer")
            if type(image_id) is not int or image_id not in sizes:
                if type(image_id) is int and image_id in source.images_passed_over:
                    refused += 1
                    continue
                raise _box_error(source, index, entry, "image_id", "an id of images")
            if type(category_id) is not int or category_id not in per_class:
                if type(category_id) is int and category_id in source.categories_passed_over:
                    refused += 1
                    continue
                raise _box_error(source, index, entry, "category_id", "an id of categories")
            if type(box) is not list or len(box) != 4 or not all(is_number(value) for value in box):
                allowed = "four finite numbers: left, top, width, height, in pixels"
                if "bbox" not in entry and isinstance(entry.get("segmentation"), list):
                    allowed += f", as {FIX} takes them from polygons in segmentation"
                raise _box_error(source, index, entry, "bbox", allowed)
            left, top, width, height = box
            if not (width > 0 and height > 0) and not (allow_empty and width >= 0 and height >= 0):
                raise _box_error(
                    source, index, entry, "bbox", "[left, top, width, height] of positive width and height"
                )
            image_width, image_height = sizes[image_id]
            right, bottom = left + width, top + height
            if left >= image_width or top >= image_height or (right <= 0 and width > 0) or (bottom <= 0 and height > 0):
                allowed = f"a box that reaches into its image, {image_width} x {image_height} pixels (id {image_id})"
                raise _box_error(source, index, entry, "bbox", allowed)
            if not is_number(area):
                raise _box_error(source, index, entry, "area", "a finite number, in square pixels")
            if type(crowd) is not int or crowd not in (0, 1):
                as_text = type(crowd) is str and crowd.strip() in ("0", "1")
                raise _box_error(source, index, entry, "iscrowd", "0 or 1" + f", as {FIX} writes it" * as_text)
            if entry.get("ignore"):  # mmdet would leave the box out
                raise _box_error(source, index, entry, "ignore", "0 or 1")
        except InputError as defect:
            source.refuse(defect)
            refused += 1
            continue
        ids.add(box_id)
        per_class[category_id] += 1
        classes_of[image_id].add(category_id)
        crowds += crowd
        ignored += not crowd and (width < 1 or height < 1 or area <= 0)
        shares += max(map(abs, box)) <= 1
        small += area < 32**2
        large += area >= 96**2
    if crowds + ignored == len(ids) and not refused and not source.defects:
        problem = f"has {counted(crowds, 'crowd {box|boxes}')} and {ignored} without area, and no other"
        if shares == len(ids) > 0:
            problem = f"has {counted(shares, '{box|boxes}')} within one pixel, as if they were shares of the image"
        allowed = (
            "at least one box to learn from, in pixels"
            + ", with iscrowd 0 where it is of a single object" * bool(crowds)
        )
        source.refuse(source.error("annotations", problem, allowed))
    order = sorted(names)
    summary = CocoSummary(
        images=len(sizes),
        boxes=len(ids),
        classes=tuple(names[category_id] for category_id in order),
        boxes_per_class=tuple(per_class[category_id] for category_id in order),
        boxes_by_size=(small, len(ids) - small - large, large),
    )
    return {image_id: frozenset(found) for image_id, found in classes_of.items()}, summary


def _box_error(source: DocumentSource, index: int, entry: Mapping[str, Any], name: str, allowed: str) -> InputError:
    problem = f"is {show(entry[name])}" if name in entry else "is missing"
    return source.error(f"annotations[{index}].{name}", problem, allowed)


def _corner_error(source: DocumentSource, corners: CornerBoxes) -> InputError:
    boxes = counted(corners.boxes, "{box is|boxes are}")
    reason = "so read they have the areas of area" if corners.by_area else "only so they lie inside of their images"
    problem = f"{boxes} [left, top, right, bottom]: {reason}"
    allowed = f"[left, top, width, height], as {FIX} writes them"
    return source.error("annotations", problem, allowed)


def _check_on_disk(source: DocumentSource, folder: ImageFolder, file_names: tuple[str, ...]) -> None:
    if not folder.path.is_dir():
        raise source.error("images", f"their folder {folder.path} does not exist", "a folder of images")
    missing = [index for index, file_name in enumerate(file_names) if not folder.holds(file_name)]
    if len(missing) == len(file_names) > 1 and not any("\\" in name for name in file_names):
        problem = f"none of the {len(missing)} is in {folder.path}; the first: {show(file_names[0])}"
        allowed = "their folder"
        if (folder.path / file_names[0]).is_symlink():
            problem = f"all {len(missing)} are links out of {folder.path}, which are not followed"
            allowed = "the images themselves, as `cp -rL` copies them"
        source.refuse(source.error("images", problem, allowed))
        return
    if missing and source.defects is None:
        more = f", and {counted(len(missing) - 1, 'more {is|are} missing')}" if len(missing) > 1 else ""
        raise _missing_image(source, missing[0], file_names, folder.path, more)
    for index in missing:
        source.refuse(_missing_image(source, index, file_names, folder.path))


def _missing_image(
    source: DocumentSource, index: int, file_names: Sequence[str], images: Path, more: str = ""
) -> InputError:
    name = file_names[index]
    problem = f"{show(name)} is not in {images}{more}"
    allowed = "names of existing images, which are no links out of that folder"
    if "\\" in name:
        problem = f"{show(name)} is not in {images} and looks like a Windows path{more}"
        allowed = f"paths with forward slashes inside that folder, as {FIX} writes them"
    return source.error(f"images[{index}].file_name", problem, allowed)


def check_same_classes(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Check that two annotation files have the same categories in the same order.

    The order counts because mmdet numbers its labels in the order of each file.

    Raises:
        InputError: At the first category that differs.
    """
    train_names = dict(zip(train.category_ids, train.classes, strict=True))
    val_names = dict(zip(val.category_ids, val.classes, strict=True))
    source = DocumentSource(val.source, val.key)
    for one, other in ((train, val), (val, train)):
        if one.left_out is not None and one.left_out[0] in other.category_ids:
            number, name = one.left_out
            problem = f"{show(name)} (id {number}) has boxes in {other.source}; in {one.source} it has none"
            allowed = f"boxes of it in both, in neither, or a supercategory other than {show(name)} for the rest"
            raise source.error("categories", problem, allowed)
    for category_id in sorted(train_names.keys() | val_names.keys()):
        wanted, found = (
            show(names[category_id]) if category_id in names else "of no class" for names in (train_names, val_names)
        )
        if wanted != found:
            problem = f"id {category_id} is {found} here and {wanted} in {train.source}"
            raise source.error(
                "categories", problem, f"the categories of {train.key}, as {FIX} gives both files the same"
            )
    if train.file_category_ids != val.file_category_ids:
        problem = f"are listed in another order than in {train.source}"
        raise source.error("categories", problem, f"the order of {train.key}, as {FIX} writes them")
