"""COCO files of files that have a label file each, written once under a name that holds a digest of all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hitdet_nni.data.images.reading import decoded_size
from hitdet_nni.data.layouts.parts import Box, Labelled, LabelPart, LabelReader, Notes
from hitdet_nni.data.wording import counted
from hitdet_nni.engine.machine import available_cores
from hitdet_nni.errors import InputError
from hitdet_nni.io import locked, write_text

logger = logging.getLogger(__name__)

_VERSION = 1  # of what is made of the same files
_MANY = 2000  # files that take so long that a line says so
_AT_ONCE = 4096  # files that the decoding threads are given at a time

_UNLABELLED = "{image has no label file: taken as an image|images have no label file: taken as images} without objects"


def coco_file(
    part: LabelPart, classes: Sequence[str], reader: LabelReader, cache: Path
) -> tuple[Path, Path, tuple[str, ...]]:
    """Write the images of a part and their boxes as a COCO file; do nothing where it is there.

    Images are numbered from 1 in the order of the part, boxes in that of the images and of the label files, classes
    from 1 in the order that is given.

    Args:
        part: The images with their label files.
        classes: Names of all classes.
        reader: Reads the label files.
        cache: The folder of such files.

    Returns:
        The file, the folder that its file names are relative to, and what was read otherwise than it stands, a line
        each.

    Raises:
        InputError: At the first defect, with the number of others.
    """
    files = [_real(item.image) for item in part.items]
    base = Path(os.path.commonpath([image.parent for image in files]))
    digest = hashlib.sha256(json.dumps([_VERSION, type(reader).__name__, reader.settings, list(classes)]).encode())
    for item, image in zip(part.items, files, strict=True):
        status = image.stat()
        labels = None if item.labels is None else _content(item.labels)
        name = image.relative_to(base).as_posix()
        about = [name, status.st_size, status.st_mtime_ns, str(item.labels), None if labels is None else len(labels)]
        digest.update(json.dumps(about).encode() + (labels or b""))
    kind = type(reader).__name__.removesuffix("Reader").lower()
    file = cache / f"{kind}-{digest.hexdigest()[:24]}.json"
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            if len(files) > _MANY:
                logger.warning("data.root: reading labels and sizes of %d files, which is done once", len(files))
            document = _document(part.items, files, base, classes, reader)
            write_text(file, json.dumps(document))
        notes = json.loads(file.read_bytes())["info"]["notes"]
    return file, base, tuple(notes)


def read_size(file: Path) -> tuple[int, int]:
    """Return the width and height of an image as training reads it, turned as its orientation says.

    Raises:
        InputError: If it cannot be decoded.
    """
    size = decoded_size(file)
    if isinstance(size, str):
        raise InputError(size, source=file, key="data.root")
    return size


def _real(image: Path) -> Path:
    """Return the image itself where the name is a link, which may lead anywhere."""
    try:
        return image.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or 'a link that leads to itself'})"
        raise InputError(problem, source=image, key="data.root") from None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=file, key="data.root") from None


Read = tuple[tuple[int, int], list[Box], Notes]


def _document(
    items: Sequence[Labelled], files: Sequence[Path], base: Path, classes: Sequence[str], reader: LabelReader
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    notes = Notes()
    for number, (image, read) in enumerate(zip(files, _read(items, files, reader), strict=True), start=1):
        (width, height), found, own = read
        name = image.relative_to(base).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes += [_annotation(len(boxes) + index, number, box) for index, box in enumerate(found, start=1)]
        for what, (count, first) in own.seen.items():
            notes.add(what, first, count)
    unlabelled = [item.name for item in items if item.labels is None]
    if unlabelled:
        notes.add(_UNLABELLED, unlabelled[0], len(unlabelled))
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    info = {"description": "made by hitdet-nni of label files", "notes": notes.lines()}
    return {"info": info, "images": images, "annotations": boxes, "categories": categories}


def _annotation(number: int, image_id: int, box: Box) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": box.label + 1,
        "bbox": list(box.box),
        "area": box.box[2] * box.box[3],
        "iscrowd": int(box.crowd),
    }


def _read(items: Sequence[Labelled], files: Sequence[Path], reader: LabelReader) -> list[Read]:
    """Return the sizes and boxes of all images.

    Raises:
        InputError: The first defect, with the number of others.
    """

    def read(item: Labelled, image: Path) -> Read | InputError:
        notes = Notes()
        try:
            return *reader.read(item, lambda: read_size(image), notes), notes
        except InputError as error:
            return error

    found: list[Read] = []
    defects: list[InputError] = []
    with ThreadPoolExecutor(available_cores()) as threads:  # OpenCV decodes without Python's lock
        for start in range(0, len(items), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            for outcome in threads.map(read, items[some], files[some]):
                if isinstance(outcome, InputError):
                    defects.append(outcome)
                else:
                    found.append(outcome)
    if defects:
        more = f" ({counted(len(defects) - 1, 'more {file has|files have} defects')})" if len(defects) > 1 else ""
        first = defects[0]
        raise InputError(first.problem + more, source=first.source, key=first.key, allowed=first.allowed)
    return found
