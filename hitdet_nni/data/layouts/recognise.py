"""Which layout a folder has, said in a line, and the COCO files that its parts are read from."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from hitdet_nni.data.layouts import coco, voc, yolo
from hitdet_nni.data.layouts.documents import coco_file
from hitdet_nni.data.layouts.parts import CocoPart, Found, LabelPart, Split, entries, refusal

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


def open_root(root: Path, cache: Path, splits: Collection[Split]) -> dict[Split, tuple[Path, Path]]:
    """Recognise a folder, say what it is, and read labels that are in another format than COCO's.

    Args:
        root: The folder that ``data.root`` names.
        cache: Where the COCO files of other formats are written; nothing is written into the folder itself.
        splits: Which parts are of interest.

    Returns:
        COCO file, and the folder that its file names are relative to, of each of the `splits` that the folder has.

    Raises:
        InputError: If the folder has no known layout, or labels have a defect, naming file and place.
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
    return {split: _coco(found, part, cache) for split, part in parts.items() if split in splits and part is not None}


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
        raise refusal(root, "is a file" if root.exists() else "does not exist", "a folder of images and labels")
    if any((root / year / "ImageSets").is_dir() for year in ("VOC2007", "VOC2012")):
        raise refusal(root, "is PASCAL VOC's development kit", "data.layout: voc0712 beside it, see docs/your_data.md")
    for finder in _FINDERS:
        found = finder(root)
        if found is not None:
            return found
    raise refusal(root, f"has no known layout: {_seen(root)}", KNOWN)


def _seen(root: Path) -> str:
    there = entries(root)
    names = ", ".join(f"{each.name}/" if each.is_dir() else each.name for each in there[:_SHOWN])
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    text = f"it holds {names}{more}" if there else "it is empty"
    return text + _hint(root, there)


def _hint(root: Path, there: list[Path]) -> str:
    """Return what a person might do about a folder of no known layout."""
    files = [each for each in there if each.suffix.lower() == ".json" and each.is_file()]
    for file in files[:_SHOWN]:
        content = _beginning(file)
        if b'"shapes"' in content and b'"imagePath"' in content:
            return f"; {file.name} is labelme's own file: labelme2coco makes a COCO file of such"
        if b'"shape_attributes"' in content or b'"_via_settings"' in content:
            return f"; {file.name} is VIA's own file: export annotations in COCO format"
    for folder in (each for each in there if each.is_dir()):
        for finder in _FINDERS:
            try:
                found = finder(folder)
            except ValueError:
                continue
            if found is not None:
                return f"; the folder {folder.name} in it is a {found.kind} data set"
    return ""


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(1_000_000)
    except OSError:
        return b""


def _coco(found: Found, part: CocoPart | LabelPart, cache: Path) -> tuple[Path, Path]:
    if isinstance(part, CocoPart):
        return part.ann, part.images
    assert found.reader is not None
    ann, images, notes = coco_file(part, found.classes, found.reader, cache)
    for note in notes:
        echo(f"data.root: {note}")
    return ann, images
