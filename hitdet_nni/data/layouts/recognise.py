"""Which layout a folder has, said in a line, and the COCO files that its parts are read from."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hitdet_nni.data.layouts import coco, voc, yolo
from hitdet_nni.data.layouts.documents import coco_file
from hitdet_nni.data.layouts.parts import (
    CocoPart,
    Found,
    LabelPart,
    NoTrainingPartError,
    Split,
    entries,
    refusal,
    shown,
)
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

KNOWN = (
    "COCO (annotations/instances_train.json and train/, or one COCO file and images/), "
    "Roboflow COCO (train/_annotations.coco.json), YOLO (data.yaml or classes.txt, images/ and labels/), "
    "PASCAL VOC (Annotations/*.xml and JPEGImages/, or .xml beside the images)"
)
"""The layouts in the order in which they are looked for; a folder of several is taken as the first."""

_FINDERS = (coco.find, yolo.find, voc.find)
_SHOWN = 8  # names of a folder of no known layout

_said: set[str] = set()
"""Lines that this process has said: a folder is opened for each split, and again by each stage."""


def open_root(
    root: Path,
    cache: Path,
    splits: Collection[Split],
    defects: Mapping[Split, list[InputError]] | None = None,
) -> dict[Split, tuple[Path, Path] | None]:
    """Recognise a folder, say what it is, and read labels that are in another format than COCO's.

    Args:
        root: The folder that ``data.root`` names.
        cache: Where the COCO files of other formats are written; nothing is written into the folder itself.
        splits: Which parts are of interest.
        defects: Takes what is wrong with label files and their images, by part, instead of the first being raised;
            images that it concerns are then left out.

    Returns:
        COCO file, and the folder that its file names are relative to, of each of the `splits` that the folder has;
        ``None`` where no box of the part is left.

    Raises:
        InputError: If the folder has no known layout, or labels have a defect, naming file and place, unless `defects`
            takes it.
    """
    root = root.resolve() if ".." in root.parts else root
    found = recognise(root)
    parts: dict[Split, CocoPart | LabelPart | None] = {"train": found.train, "val": found.val}
    words: dict[Split, str] = {"train": "training", "val": "validation"}
    described = [
        f"no {words[split]} part" if part is None else f"{words[split]} {part.about(root)}"
        for split, part in parts.items()
        if split in splits
    ]
    echo(f"data.root: {root} is a {found.kind} data set: {found.about}; {', '.join(described)}")
    for note in found.notes:
        echo(f"data.root: {note}")
    return {
        split: _coco(root, found, part, cache, None if defects is None else defects[split])
        for split, part in parts.items()
        if split in splits and part is not None
    }


def echo(line: str) -> None:
    """Tell the user something, once a process."""
    line = line.encode("utf-8", "backslashreplace").decode()  # names of files may be of no encoding
    if line not in _said:
        _said.add(line)
        logger.warning("%s", line)  # a warning, so that commands that show no progress show it too


def recognise(root: Path) -> Found:
    """Tell what a folder is.

    Args:
        root: The folder that ``data.root`` names.

    Raises:
        InputError: If it has no known layout: which ones are, and what was seen.
    """
    if not root.is_dir():
        problem = f"is a file{_hint_above(root)}" if root.exists() else "does not exist"
        raise refusal(root, problem, "a folder of images and labels")
    if any((root / year / "ImageSets").is_dir() for year in ("VOC2007", "VOC2012")):
        raise refusal(root, "is PASCAL VOC's development kit", "data.layout: voc0712 beside it, see docs/your_data.md")
    incomplete: NoTrainingPartError | None = None
    for finder in _FINDERS:
        try:
            found = finder(root)
        except NoTrainingPartError as error:  # such as a COCO file to evaluate by, beside a set of another layout
            incomplete, found = error, None
        except InputError as error:
            raise _with_hint(error, root) from None
        if found is not None and incomplete is not None:
            return replace(found, notes=(*found.notes, f"beside it lies what {incomplete.problem}; that is not used"))
        if found is not None:
            return found
    if incomplete is not None:
        raise _with_hint(incomplete, root)
    raise refusal(root, f"has no known layout: {_seen(root)}", KNOWN)


_OWN_FILES = (
    (("shapes", "imagePath"), "labelme", "labelme2coco makes a COCO file of such"),
    (("shape_attributes",), "VIA", "export annotations in COCO format"),
    (("_via_settings",), "VIA", "export annotations in COCO format"),
    (("from_name", "to_name", "data"), "Label Studio", "export COCO or YOLO, with images"),
    (("classTitle", "objects"), "Supervisely", "export in COCO format"),
    (("classes", "tags", "shape"), "Supervisely", "export in COCO format"),
    (("annotations", "label", "coordinates"), "CreateML", "export COCO"),
)
"""Keys that all stand in a file of a tool's own, the tool, and what to do about it."""


def _with_hint(error: InputError, root: Path) -> InputError:
    """Return an error with what lies above the folder: a part of a set may look like a set that lacks something."""
    return InputError(error.problem + _hint_above(root), source=error.source, key=error.key, allowed=error.allowed)


def _seen(root: Path) -> str:
    there = entries(root)
    names = ", ".join(f"{each.name}/" if each.is_dir() else each.name for each in there[:_SHOWN])
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    text = f"it holds {names}{more}" if there else "it is empty"
    return text + _hint(root, there)


def _hint(root: Path, there: list[Path]) -> str:
    """Return what a person might do about a folder of no known layout."""
    inside = [each for folder in there if folder.name.lower() == "annotations" for each in entries(folder)]
    files = [each for each in [*there, *inside] if each.suffix.lower() == ".json" and each.is_file()]
    for file in files[:_SHOWN]:
        content = _beginning(file)
        for keys, tool, remedy in _OWN_FILES:
            if all(f'"{key}"'.encode() in content for key in keys):
                return f"; {file.name} is {tool}'s own file: {remedy}"
    if (root / voc.CVAT).is_file():
        return f"; {voc.CVAT} is CVAT's own file: export COCO 1.0 with images"
    for file in files[:_SHOWN]:
        damage = coco.damage_of(file)
        if damage is not None:
            return f"; {shown(file, root)} {damage}"
    for folder in (each for each in there if each.is_dir()):
        kind = _kind(folder)
        if kind is not None:
            return f"; the folder {folder.name} in it is a {kind} data set"
    return _hint_above(root)


def _hint_above(path: Path) -> str:
    """Return which folder a path is a part of, where one of the two above it is a data set."""
    for folder in path.absolute().parents[:2]:
        kind = _kind(folder)
        if kind is not None:
            return f"; the folder {folder} above it is a {kind} data set"
    return ""


def _kind(folder: Path) -> str | None:
    """Return what layout a folder has; ``None``: none that can be read."""
    for finder in _FINDERS:
        with suppress(ValueError, OSError):
            found = finder(folder)
            if found is not None:
                return found.kind
    return None


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(1_000_000)
    except OSError:
        return b""


def _coco(
    root: Path, found: Found, part: CocoPart | LabelPart, cache: Path, defects: list[InputError] | None
) -> tuple[Path, Path] | None:
    if isinstance(part, CocoPart):
        return part.ann, part.images
    assert found.reader is not None
    written = coco_file(root, part, found.classes, found.reader, cache, defects)
    if written is None:
        return None
    ann, images, notes = written
    for note in notes:
        echo(f"data.root: {note}")
    return ann, images
