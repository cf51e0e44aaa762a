"""COCO files of files that have a label file each, written once under a name that holds a digest of all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hitdet_nni.data.annotations.coco_document import made_of
from hitdet_nni.data.images.reading import decoded_size
from hitdet_nni.data.layouts.parts import Box, Labelled, LabelPart, LabelReader, Notes, refusal
from hitdet_nni.data.wording import counted
from hitdet_nni.engine.machine import available_cores
from hitdet_nni.errors import InputError
from hitdet_nni.io import locked, write_text

logger = logging.getLogger(__name__)

_VERSION = 3  # of what is made of the same files
_MANY = 2000  # files that take so long that a line says so
_ANY_SIZE = (2**20, 2**20)  # of an image that is not decoded, which all boxes reach into
_AT_ONCE = 4096  # files that the decoding threads are given at a time

_UNLABELLED = "{image has no label file: taken as an image|images have no label file: taken as images} without objects"


def coco_file(
    root: Path,
    part: LabelPart,
    classes: Sequence[str],
    reader: LabelReader,
    cache: Path,
    defects: list[InputError] | None = None,
) -> tuple[Path, Path, tuple[str, ...]] | None:
    """Write the images of a part and their boxes as a COCO file; do nothing where it is there.

    Images are numbered from 1 in the order of the part, boxes in that of the images and of the label files, classes
    from 1 in the order that is given.

    Args:
        root: The folder that ``data.root`` names; the file says that it was made of it.
        part: The images with their label files.
        classes: Names of all classes.
        reader: Reads the label files.
        cache: The folder of such files.
        defects: Takes the first defect of each label file and of each image, instead of the first being raised; the
            images that have any are left out of the file.

    Returns:
        The file, the folder that its file names are relative to, and what was read otherwise than it stands, a line
        each; ``None`` where no box is left.

    Raises:
        InputError: At the first defect, with the number of others, or if there is nothing to learn, unless `defects`
            takes them.
    """
    if not any(item.labels for item in part.items):
        _refuse(_no_labels(root, part), defects)
        return None
    images = list(_found(part.items, defects))
    if not images:
        return None
    file, base = _file(root, images, classes, reader, cache)
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            if len(images) > _MANY:
                logger.warning("data.root: reading labels and sizes of %d files, which is done once", len(images))
            read = _read(images, reader)
            sound = [each for each in read if not isinstance(each, list)]
            wrong = {str(defect): defect for each in read if isinstance(each, list) for defect in each}
            if wrong and defects is None:
                raise _first_of(list(wrong.values()))
            if wrong and defects is not None:
                defects += wrong.values()
                if not any(boxes for _, boxes, _ in sound):
                    return None
                images = [image for image, each in zip(images, read, strict=True) if not isinstance(each, list)]
                file, base = _file(root, images, classes, reader, cache)
            elif not any(map(_is_learned, (box for _, boxes, _ in sound for box in boxes))):
                _refuse(_no_objects(root, part), defects)
                return None
            write_text(file, json.dumps({**_document(images, sound, base, classes), **made_of([str(root)])}))
        notes = json.loads(file.read_bytes())["info"]["notes"]
    return file, base, tuple(notes)


def _refuse(defect: InputError, defects: list[InputError] | None) -> None:
    """Refuse a part as a whole: raise its defect, or note it where defects are noted."""
    if defects is None:
        raise defect
    defects.append(defect)


def _no_labels(root: Path, part: LabelPart) -> InputError:
    images = counted(len(part.items), "{image|images}")
    problem = f"no label file was found for the {images} of {part.place}; looked for {part.label_places}"
    return refusal(root, problem, "a label file for each image that shows an object, under the name of the image")


def _no_objects(root: Path, part: LabelPart) -> InputError:
    files = counted(len({item.labels for item in part.items} - {None}), "{label file|label files}")
    problem = f"nothing is to be learned from the {files} of {part.place}"
    return refusal(root, problem, "at least one object, not marked difficult, whose sides are a pixel or more")


def _is_learned(box: Box) -> bool:
    return not box.crowd and min(box.box[2:]) >= 1


def _file(
    root: Path, images: Sequence[tuple[Labelled, Path]], classes: Sequence[str], reader: LabelReader, cache: Path
) -> tuple[Path, Path]:
    """Return the file of some images, named after all that it depends on, and the folder of its file names."""
    base = Path(os.path.commonpath([image.parent for _, image in images]))
    made = [_VERSION, str(root), type(reader).__name__, reader.settings, list(classes)]
    digest = hashlib.sha256(json.dumps(made).encode())
    for item, image in images:
        status = image.stat()
        labels = None if item.labels is None else _content(item.labels)
        name = image.relative_to(base).as_posix()
        about = [name, status.st_size, status.st_mtime_ns, str(item.labels), None if labels is None else len(labels)]
        digest.update(json.dumps(about).encode() + (labels or b""))
    kind = type(reader).__name__.removesuffix("Reader").lower()
    return cache / f"{kind}-{digest.hexdigest()[:24]}.json", base


def read_size(file: Path) -> tuple[int, int]:
    """Return the width and height of an image as training reads it, turned as its orientation says.

    Raises:
        InputError: If it cannot be decoded.
    """
    size = decoded_size(file)
    if isinstance(size, str):
        raise InputError(size, source=file, key="data.root")
    return size


def _found(items: Sequence[Labelled], defects: list[InputError] | None) -> Iterator[tuple[Labelled, Path]]:
    """Yield each image with the file itself where its name is a link, which may lead anywhere."""
    for item in items:
        try:
            yield item, item.image.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            problem = f"cannot be read ({getattr(error, 'strerror', None) or 'a link that leads to itself'})"
            defect = InputError(problem, source=item.image, key="data.root")
            if defects is None:
                raise defect from None
            defects.append(defect)


def _content(file: Path) -> bytes:
    """Return the bytes of a label file; of one that cannot be read, which the reader refuses, why."""
    try:
        return file.read_bytes()
    except OSError as error:
        return str(error).encode()


Read = tuple[tuple[int, int], list[Box], Notes]


def _document(
    found: Sequence[tuple[Labelled, Path]], read: Sequence[Read], base: Path, classes: Sequence[str]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    notes = Notes()
    for number, ((_, image), each) in enumerate(zip(found, read, strict=True), start=1):
        (width, height), inside, own = each
        name = image.relative_to(base).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes += [_annotation(len(boxes) + index, number, box) for index, box in enumerate(inside, start=1)]
        for what, (count, first) in own.seen.items():
            notes.add(what, first, count)
    unlabelled = [item.name for item, _ in found if item.labels is None]
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


def _read(images: Sequence[tuple[Labelled, Path]], reader: LabelReader) -> list[Read | list[InputError]]:
    """Return the size and boxes of each image, or what is wrong with it and with its label file."""

    def read(found: tuple[Labelled, Path]) -> Read | list[InputError]:
        item, image = found
        notes = Notes()
        try:
            return *reader.read(item, lambda: read_size(image), notes), notes
        except InputError as error:
            return list(_defects(item, image, reader)) or [error]

    outcomes: list[Read | list[InputError]] = []
    with ThreadPoolExecutor(available_cores()) as threads:  # OpenCV decodes without Python's lock
        for start in range(0, len(images), _AT_ONCE):
            outcomes += threads.map(read, images[start : start + _AT_ONCE])
    return outcomes


def _defects(item: Labelled, image: Path, reader: LabelReader) -> Iterator[InputError]:
    """Yield the first defect of a label file, whatever its image is like, and that of the image."""
    for attempt in (lambda: reader.read(item, lambda: _ANY_SIZE, Notes()), lambda: read_size(image)):
        try:
            attempt()
        except InputError as error:
            yield error


def _first_of(defects: Sequence[InputError]) -> InputError:
    """Return the first of some defects, with the number of others."""
    more = f" ({counted(len(defects) - 1, 'more {file has|files have} defects')})" if len(defects) > 1 else ""
    first = defects[0]
    return InputError(first.problem + more, source=first.source, key=first.key, allowed=first.allowed)
