"""Folders with COCO annotation files: COCO's own layout, Roboflow's, and a single file beside its images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hitdet_nni.data.layouts.parts import (
    CocoPart,
    Found,
    NoTrainingPartError,
    Role,
    entries,
    is_image,
    named,
    refusal,
    role_folders,
    role_of,
    shown,
)
from hitdet_nni.errors import InputError
from hitdet_nni.io import is_there

ROBOFLOW = "_annotations.coco.json"

_OTHER_TASKS = ("captions", "panoptic", "stuff", "keypoints", "image_info", "minival")
"""Files beside the boxes in COCO's own folder, which are not asked."""

_NAME_WORDS = frozenset(("annotation", "annotations", "coco", "default", "instances", "labels"))
"""What a name consists of, besides its part, that an annotation file of boxes alone has: ``instances_val2017``."""

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_NAMES_ASKED = 8  # file names by which the folder of images is found: one alone may be missing
_DEEP = 3  # how far below the set's folder images are looked for
_FOLDERS = 500  # how many folders are looked into
_WHOLE = "the paths in data.train_ann, train_images, val_ann and val_images instead of data.root"


def find(root: Path) -> Found | None:
    """Return the COCO set that lies in a folder; ``None``: there is none.

    Files are recognised by the keys in them; a file that lacks them, being empty, cut off or of something else, by its
    name, so that it is refused when it is read.

    Args:
        root: The folder.

    Raises:
        NoTrainingPartError: If there is none to train on.
        InputError: If several files could be the same part's, or the images lie elsewhere.
    """
    roboflow = {role: folder for role, folder in role_folders(root).items() if (folder / ROBOFLOW).is_file()}
    if roboflow:
        parts = {role: CocoPart(folder / ROBOFLOW, folder) for role, folder in roboflow.items()}
        return _found(root, "Roboflow COCO", parts)
    for folders in ([root / "annotations"], [root], list(role_folders(root).values())):
        files = _coco_files(root, folders)
        if files:
            parts = _parts(root, files)
            _require_images(root, parts)
            return _found(root, "COCO", parts)
    return None


def damage_of(file: Path) -> str | None:
    """Return what is wrong with a JSON file that is empty or cut off; ``None``: it is whole.

    Raises:
        InputError: If it cannot be read.
    """
    content = _content(file)
    return None if content.is_whole else "is empty" if content.is_empty else "is cut off, or no JSON"


def _found(root: Path, kind: str, parts: dict[Role, CocoPart]) -> Found:
    if "train" not in parts:
        there = ", ".join(shown(part.ann, root) for part in parts.values())
        problem = f"is a {kind} data set without a training part: it has {there}"
        raise NoTrainingPartError(problem, source=root, key="data.root", allowed=_WHOLE)
    notes = []
    if "test" in parts:
        notes.append(f"{shown(parts['test'].ann, root)} is a test part: not used in training or validation")
    about = "one annotation file" if len(parts) == 1 else f"{len(parts)} annotation files"
    return Found(kind, about, parts["train"], parts.get("val"), notes=tuple(notes))


def _coco_files(root: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the annotation files of boxes in some folders; those of other tasks only where there is nothing else."""
    files = [each for folder in folders for each in entries(folder) if each.suffix.lower() == ".json"]
    files = [file for file in files if file.is_file()]
    of_boxes, of_other_tasks = ([file for file in files if (_task(file) is None) == wanted] for wanted in (True, False))
    return _by_keys_and_name(root, folders, of_boxes) or _by_keys_and_name(root, folders, of_other_tasks)


def _by_keys_and_name(root: Path, folders: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """Return the files with COCO's keys, and of the parts that none of them is of those that are meant by their names.

    A file that lacks the keys is meant where its name is one of COCO's, in COCO's own folder or where a file of the set
    has them or is damaged; under a freer name where another has them and it is damaged.
    """
    found = [file for file in files if _content(file).is_coco]
    parts, tasks = {_part_of(root, file) for file in found}, {_task(file) for file in found} or {None}
    images = {each.with_suffix("") for folder in folders for each in entries(folder) if is_image(each.name)}
    # labelme's files are called as the images beside them, whatever these show.
    others = [file for file in files if _task(file) in tasks and file.with_suffix("") not in images]
    of_parts = [file for file in others if _part_of(root, file) not in (None, *parts)]
    damaged = [file for file in of_parts if not _content(file).is_whole]
    named = [file for file in of_parts if _has_coco_name(file)]
    is_coco = bool(found) or any(file.parent == root / "annotations" or file in damaged for file in named)
    by_name = named if is_coco else []
    if found:
        by_name += [file for file in damaged if file not in named and _role(file) is not None]
    if found or by_name:
        return found + by_name
    whole_sets = [file for file in others if _names_whole_set(root, file) and not _content(file).is_whole]
    return whole_sets if len(whole_sets) == 1 else []


def _task(file: Path) -> str | None:
    """Return the other task that the name of a file speaks of."""
    return next((task for task in _OTHER_TASKS if task in file.name.lower()), None)


def _has_coco_name(file: Path) -> bool:
    """Whether a name is one that COCO's files of boxes have, such as ``instances_val2017`` or ``train``."""
    words = [word for word in _words(file) if not word.isdigit()]
    return bool(words) and all(word in _NAME_WORDS or role_of(word) is not None for word in words)


def _names_whole_set(root: Path, file: Path) -> bool:
    """Whether a name is that of one file for all images: ``annotations/instances_default.json``."""
    return file.name == ROBOFLOW or (file.parent == root / "annotations" and _has_coco_name(file))


class _Content(NamedTuple):
    """What a JSON file holds, as far as that is seen without parsing it.

    Attributes:
        is_coco: Whether it names COCO's three lists.
        is_empty: Whether nothing is in it.
        is_whole: Whether it ends with what closes its first bracket.
        names: The first file names in it.
    """

    is_coco: bool
    is_empty: bool
    is_whole: bool
    names: tuple[str, ...]


def _content(file: Path) -> _Content:
    """Return what a file holds.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        status = file.stat()
        return _content_at(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=file, key="data.root") from None


@lru_cache(10_000)  # a folder is opened for each split, and again by each stage
def _content_at(file: Path, modified: int, size: int) -> _Content:
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        content = content.replace(b"\0", b"")  # UTF-16 and UTF-32, of which the keys are ASCII
    text = content.strip(b"\xef\xbb\xbf\xff\xfe \t\r\n")  # marks of the byte order among them
    is_whole = text[:1] + text[-1:] in (b"{}", b"[]") and text.count(b"{") == text.count(b"}")
    names = []
    for found in islice(_NAME.finditer(content), _NAMES_ASKED):
        with suppress(ValueError):  # what is wrong with it is said when the file is read
            names.append(json.loads(found[1]).replace("\\", "/"))
    return _Content(all(key in content for key in _KEYS), not text, is_whole, tuple(names))


def _parts(root: Path, files: list[Path]) -> dict[Role, CocoPart]:
    """Return the annotation files by part; a single file of no part is to be trained on."""
    found: dict[Role, Path] = {}
    for file in files:
        role = _part_of(root, file)
        if len(files) == 1 and (role is None or _is_named_freely(root, file)):
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


def _part_of(root: Path, file: Path) -> Role | None:
    """Return the part that the name of a file speaks of, or else that of its folder."""
    return _role(file) or (_role(file.parent) if file.parent not in (root, root / "annotations") else None)


def _is_named_freely(root: Path, file: Path) -> bool:
    """Whether the name of a file is none of COCO's, so that it may speak of a test that is no part of a data set."""
    return file.parent in (root, root / "annotations") and not _has_coco_name(file)


def _words(file: Path) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", file.stem.lower()) if word]


def _role(file: Path) -> Role | None:
    """Return the part that a name like ``instances_train2017`` speaks of; ``trainval`` is to be trained on."""
    words = _words(file)
    roles = [role_of(word) for word in words] + ["train" for word in words if word.startswith("trainval")]
    return next((role for role in roles if role is not None), None)


def _images(root: Path, role: Role, file: Path) -> Path:
    """Return the folder of a part's images: the first that has most of the first images of the file.

    It is looked for among the likely ones, and then among all folders.
    """
    folders = [folder for folder in _folders(root, role, file) if folder.is_dir()]
    for candidates in (folders, list(_all_folders(root))):
        best = max(candidates, key=lambda folder: _images_in(file, folder))  # the first of several
        if _images_in(file, best):
            return best
    return folders[0]


def _images_in(file: Path, folder: Path) -> int:
    """Return how many of the first images of a file a folder has."""
    return sum("\0" not in name and is_there(folder / name, file=True) for name in _content(file).names)


def _all_folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, those of one depth by name, down to some depth and number; of those that open."""
    found, left = [root], _FOLDERS
    for _ in range(_DEEP + 1):
        found = found[:left]
        left -= len(found)
        yield from found
        found = [each for folder in found for each in _folders_in(folder)]


def _folders_in(folder: Path) -> list[Path]:
    names = []
    with suppress(OSError), os.scandir(folder) as there:  # no question to the file system about each of many images
        for each in there:
            with suppress(OSError):  # a link that leads to itself
                if each.is_dir() and not each.name.startswith((".", "__MACOSX")):
                    names.append(each.name)
    return [folder / name for name in sorted(names)]


def _require_images(root: Path, parts: dict[Role, CocoPart]) -> None:
    """Refuse a folder of annotation files whose images lie in the folder above, as ``annotations`` itself is."""
    above = root.absolute().parent
    for role, part in parts.items():
        if role == "test" or _images_in(part.ann, part.images):
            continue
        folder = next((each for each in _folders(above, role, part.ann.absolute()) if _images_in(part.ann, each)), None)
        if folder is not None:
            problem = (
                f"holds annotation files, and their images are not in it: those of {part.ann.name} are in {folder}"
            )
            raise refusal(root, problem, f"the folder of both, or {_WHOLE}")


def _folders(root: Path, role: Role, file: Path) -> Iterator[Path]:
    """Yield where a part's images may lie, the likeliest first."""
    year = re.search(r"\d{4}", file.stem)
    parts = [folder for folder in (root, root / "images") if folder.is_dir()]
    if year is not None:
        for folder in parts:
            yield from (each for each in entries(folder) if role_of(each.name) == role and year[0] in each.name)
    for folder in parts:
        yield from filter(None, [role_folders(folder).get(role), *(named(folder, word) for word in _words(file))])
    if file.parent not in (root, root / "annotations"):
        yield from (file.parent / name for name in ("images", "data", "."))
    for name in ("images", "JPEGImages", "data", "img", "imgs"):
        yield from filter(None, [named(root, name)])
    yield root
