"""PASCAL VOC's development kit as COCO annotation files: trainval 07+12 for training, test 07 for validation.

A COCO file per split is written; images stay where they are. VOC counts pixels from 1 and includes both ends, so a box
of ``xmin``..``xmax`` starts at ``xmin - 1`` and is ``xmax - xmin + 1`` wide.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2007 and 2012, development kits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from xml.etree import ElementTree

from hitdet_nni.data.annotations.class_names import NAME, is_one_line
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, write_text

CLASSES: Final = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Class names; the category id of class ``i`` is ``i + 1``."""

_FILES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "annotations/instances_trainval0712.json": (("VOC2007", "trainval"), ("VOC2012", "trainval")),
    "annotations/instances_test07.json": (("VOC2007", "test"),),
}
"""The years and lists of images of each file that is written."""

Difficult = Literal["crowd", "keep", "drop"]


def convert_voc(voc: Path | None, out: Path, *, difficult: Difficult = "crowd", force: bool = False) -> dict[Path, str]:
    """Write both splits as COCO annotation files, whose file names are relative to the development kit.

    Args:
        voc: The folder that holds ``VOC2007`` and ``VOC2012``.
        out: Folder in which ``annotations/`` is written; `voc` itself for ``data.layout: voc0712``.
        difficult: What becomes of objects marked difficult, which VOC's evaluation neither asks for nor counts against
            a detector. ``"crowd"`` makes them crowd boxes, which training does not learn from and COCO's evaluation
            ignores; its overlap with a detection is then the share of the detection that it covers.
        force: Replace files that are there.

    Returns:
        What was written, by file: numbers of images and boxes.

    Raises:
        InputError: If a file is missing or broken, naming it and the place, or is there already.
    """
    if voc is None or not voc.is_dir():
        problem = "is missing" if voc is None else f"{voc} is no folder"
        raise InputError(problem, key="--voc", allowed="the folder that holds VOC2007 and VOC2012")
    files = [out / name for name in _FILES]
    for file in files:
        if file.exists() and not force:
            raise InputError("exists already", source=file, allowed="another --out, or --force")
    contents = [_split(voc, lists, difficult) for lists in _FILES.values()]
    written = {}
    for file, content in zip(files, contents, strict=True):
        write_text(file, json.dumps(content))
        crowds = sum(box["iscrowd"] for box in content["annotations"])
        boxes = counted(len(content["annotations"]), "{box|boxes}") + (
            f", {crowds} of them difficult" if crowds else ""
        )
        written[file] = f"{counted(len(content['images']), '{image|images}')}, {boxes}"
    return written


@dataclass(frozen=True)
class VocObject:
    """An object of an XML file.

    Attributes:
        name: Its class.
        box: Left, top, width and height in pixels, from 0.
        difficult: Whether it is marked so.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def read_objects(file: Path) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Return what an XML file says, whatever the classes; boxes are counted from 1 in it, as VOC's are.

    Returns:
        Width and height of the image in pixels, ``None`` where the file lacks them or has zeros; and the objects.

    Raises:
        InputError: If it cannot be read, or an object lacks its name or box, naming the place.
    """
    root = _parse(file)
    objects = []
    for index, entry in enumerate(root.findall("object")):
        place = f"object[{index}]"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise InputError("is missing", source=file, key=f"{place}.name", allowed="the name of a class")
        if not is_one_line(name):
            raise InputError(f"is {name!r:.60}", source=file, key=f"{place}.name", allowed=NAME)
        left, top, width, height = _box(file, place, entry)
        objects.append(VocObject(name, (left, top, width, height), _is_difficult(entry)))
    if not (root.findtext("size/width") or "").strip(" 0") or not (root.findtext("size/height") or "").strip(" 0"):
        return None, objects
    wide, high = (_number(file, root, f"size/{side}") for side in ("width", "height"))
    if wide < 1 or high < 1 or wide % 1 or high % 1:
        raise InputError(f"is {wide:g} x {high:g}", source=file, key="size", allowed="positive whole pixels")
    return (int(wide), int(high)), objects


def _split(voc: Path, lists: tuple[tuple[str, str], ...], difficult: Difficult) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for year, name in lists:
        for stem in _stems(voc / year / "ImageSets" / "Main" / f"{name}.txt"):
            file = voc / year / "Annotations" / f"{stem}.xml"
            root = _parse(file)
            size = [int(_number(file, root, f"size/{side}")) for side in ("width", "height")]
            if min(size) < 1:
                raise InputError(f"is {size[0]} x {size[1]}", source=file, key="size", allowed="positive pixels")
            image_id = len(images) + 1
            image = f"{year}/JPEGImages/{stem}.jpg"
            images.append({"id": image_id, "file_name": image, "width": size[0], "height": size[1]})
            for index, entry in enumerate(root.findall("object")):
                place = f"object[{index}]"
                hard = _is_difficult(entry)
                if hard and difficult == "drop":
                    continue
                box = _box(file, place, entry)
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": image_id,
                        "category_id": _category(file, place, entry),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(hard and difficult == "crowd"),
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": boxes, "categories": categories}


def _stems(file: Path) -> list[str]:
    """Return the names of the images in a list; those of a class's own list have a mark behind them."""
    stems = [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
    if not stems:
        raise InputError("is empty", source=file, allowed="names of images, one a line")
    for stem in stems:
        if "/" in stem or "\0" in stem:
            raise InputError(f"holds {stem!r}", source=file, allowed="names of images without a folder")
    return stems


def _is_difficult(entry: ElementTree.Element) -> bool:
    return (entry.findtext("difficult") or "0").strip() == "1"


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes())  # in whatever encoding it names
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(problem, source=file) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"is not XML: {error}", source=file, allowed="an annotation file of PASCAL VOC") from None


def _number(file: Path, holder: ElementTree.Element, name: str, place: str = "") -> float:
    key = f"{place}.{name}" if place else name
    text = holder.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problem = "is missing" if text is None else f"is {text!r:.60}"
        raise InputError(problem, source=file, key=key, allowed="a number of pixels")
    return value


def _box(file: Path, place: str, entry: ElementTree.Element) -> list[float]:
    """Return the left, top, width and height, from 0."""
    left, top, right, bottom = (
        _number(file, entry, f"bndbox/{side}", place) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left or bottom < top:
        problem = f"is {left:g} {top:g} {right:g} {bottom:g}"
        raise InputError(problem, source=file, key=f"{place}.bndbox", allowed="xmin <= xmax and ymin <= ymax")
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _category(file: Path, place: str, entry: ElementTree.Element) -> int:
    name = (entry.findtext("name") or "").strip()
    if name not in CLASSES:
        raise InputError(f"is {name!r:.60}", source=file, key=f"{place}.name", allowed=CLASSES)
    return CLASSES.index(name) + 1
