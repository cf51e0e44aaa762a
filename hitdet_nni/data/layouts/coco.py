"""Folders with COCO annotation files: COCO's own layout, Roboflow's, and a single file beside its images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from hitdet_nni.data.layouts.parts import CocoPart, Found, Role, entries, named, refusal, role_folders, role_of, shown
from hitdet_nni.errors import InputError

ROBOFLOW = "_annotations.coco.json"

_OTHER_TASKS = ("captions", "panoptic", "stuff", "keypoints", "image_info", "minival")
"""Files beside the boxes in COCO's own folder, which are not asked."""

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_FIRST_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_WHOLE = "the paths in data.train_ann, train_images, val_ann and val_images instead of data.root"


def find(root: Path) -> Found | None:
    """Return the COCO set that lies in a folder; ``None``: there is none.

    Args:
        root: The folder.

    Raises:
        InputError: If several files could be the same part's, or there is none to train on.
    """
    roboflow = {role: folder for role, folder in role_folders(root).items() if (folder / ROBOFLOW).is_file()}
    if roboflow:
        parts = {role: CocoPart(folder / ROBOFLOW, folder) for role, folder in roboflow.items()}
        return _found(root, "Roboflow COCO", parts)
    for folders in ([root / "annotations"], [root], list(role_folders(root).values())):
        files = [file for folder in folders for file in _coco_files(folder)]
        if files:
            return _found(root, "COCO", _parts(root, files))
    return None


def _found(root: Path, kind: str, parts: dict[Role, CocoPart]) -> Found:
    if "train" not in parts:
        there = ", ".join(shown(part.ann, root) for part in parts.values())
        raise refusal(root, f"is a {kind} data set without a training part: it has {there}", _WHOLE)
    notes = []
    if "test" in parts:
        notes.append(f"{shown(parts['test'].ann, root)} is a test part: not used in training or validation")
    about = "one annotation file" if len(parts) == 1 else f"{len(parts)} annotation files"
    return Found(kind, about, parts["train"], parts.get("val"), notes=tuple(notes))


def _coco_files(folder: Path) -> list[Path]:
    """Return the annotation files of boxes in a folder; those of other tasks only where there is nothing else."""
    files = [each for each in entries(folder) if each.suffix.lower() == ".json" and each.is_file()]
    likely = [file for file in files if not any(task in file.name.lower() for task in _OTHER_TASKS)]
    found = [file for file in likely if _facts(file)[0]]
    return found or [file for file in files if file not in likely and _facts(file)[0]]


def _facts(file: Path) -> tuple[bool, str | None]:
    """Whether a file names COCO's three lists, and the first name of an image in it; it is not parsed for that."""
    try:
        status = file.stat()
        return _facts_at(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=file, key="data.root") from None


@lru_cache(10_000)  # a folder is opened for each split, and again by each stage
def _facts_at(file: Path, modified: int, size: int) -> tuple[bool, str | None]:
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        content = content.replace(b"\0", b"")  # UTF-16 and UTF-32, of which the keys are ASCII
    name, found = None, _FIRST_NAME.search(content)
    if found is not None:
        with suppress(ValueError):  # what is wrong with it is said when the file is read
            name = json.loads(found[1]).replace("\\", "/")
    return all(key in content for key in _KEYS), name


def _parts(root: Path, files: list[Path]) -> dict[Role, CocoPart]:
    """Return the annotation files by part; a single file of no part is to be trained on."""
    found: dict[Role, Path] = {}
    for file in files:
        role = _role(file) or (_role(file.parent) if file.parent not in (root, root / "annotations") else None)
        if role is None and len(files) == 1:
            role = "train"
        if role is None:
            problem = (
                f"holds {len(files)} COCO files, of which {shown(file, root)} is neither training's nor validation's"
            )
            raise refusal(root, problem, f"names with train, val or test in them; {_WHOLE}")
        if role in found:
            problem = f"holds {shown(found[role], root)} and {shown(file, root)}, both of the part {role}"
            raise refusal(root, problem, f"one of each; {_WHOLE}")
        found[role] = file
    return {role: CocoPart(file, _images(root, role, file)) for role, file in found.items()}


def _role(file: Path) -> Role | None:
    """Return the part that a name like ``instances_train2017`` speaks of; ``trainval`` is to be trained on."""
    words = re.split(r"[^a-z0-9]+", file.stem.lower())
    roles = [role_of(word) for word in words] + ["train" for word in words if word.startswith("trainval")]
    return next((role for role in roles if role is not None), None)


def _images(root: Path, role: Role, file: Path) -> Path:
    """Return the folder of a part's images: the first that has the first image of the file."""
    folders = [folder for folder in _folders(root, role, file) if folder.is_dir()]
    name = _facts(file)[1]
    holding = [] if name is None or "\0" in name else [folder for folder in folders if (folder / name).is_file()]
    return (holding or folders)[0]


def _folders(root: Path, role: Role, file: Path) -> Iterator[Path]:
    """Yield where a part's images may lie, the likeliest first."""
    year = re.search(r"\d{4}", file.stem)
    parts = [folder for folder in (root, root / "images") if folder.is_dir()]
    if year is not None:
        for folder in parts:
            yield from (each for each in entries(folder) if role_of(each.name) == role and year[0] in each.name)
    for folder in parts:
        yield from filter(None, [role_folders(folder).get(role)])
    if file.parent not in (root, root / "annotations"):
        yield from (file.parent / name for name in ("images", "data", "."))
    for name in ("images", "JPEGImages", "data", "img", "imgs"):
        yield from filter(None, [named(root, name)])
    yield root
