"""YOLO folders: Ultralytics' with a ``data.yaml``, Label Studio's with ``classes.txt``, CVAT's with ``obj.names``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import normalize

from hitdet_nni.data.layouts.parts import (
    NAMES,
    Found,
    Labelled,
    LabelPart,
    Role,
    entries,
    files_below,
    images_below,
    is_image,
    named,
    note_sharing,
    note_unread,
    refusal,
    role_folders,
    role_of,
    shown,
)
from hitdet_nni.data.layouts.yolo_description import (
    check_names,
    classes_of,
    description,
    key_points_of,
    place_of,
    plain_path,
    tails,
)
from hitdet_nni.data.layouts.yolo_labels import YoloReader
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import is_there, read_text

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels")
_NO_LABELS = ("classes.txt", "notes.txt", "readme.txt", "requirements.txt", "predefined_classes.txt")


def find(root: Path) -> Found | None:
    """Return the YOLO set that lies in a folder; ``None``: there is none.

    Args:
        root: The folder.

    Raises:
        InputError: If its description names what is not there, or it has label files and no class names.
    """
    described = description(root)
    if described is not None:
        file, content, others = described
        classes = classes_of(file, content)
        places, notes = _places(root, file, content)
        if others:
            notes.append(f"{shown(file, root)} describes it, not {', '.join(shown(each, root) for each in others)}")
        return _found(root, file, classes, places, notes, key_points_of(file, content))
    folders = _folders_without_description(root)
    if not folders:
        return None
    files = [place / name for place in (root, folders["train"]) for name in _NAME_FILES]
    names = next((file for file in files if file.is_file()), None)
    if names is None:
        problem = "holds YOLO labels, and no file with the names of the classes"
        raise refusal(root, problem, "data.yaml with names, or classes.txt with a name a line")
    classes = tuple(line.strip() for line in read_text(names).lstrip("\ufeff").splitlines() if line.strip())
    check_names(names, None, list(classes))
    return _found(root, names, classes, {role: (folder,) for role, folder in folders.items()}, [], None)


def _found(
    root: Path,
    file: Path,
    classes: tuple[str, ...],
    places: Mapping[Role, tuple[Path, ...]],
    notes: list[str],
    key_points: int | None,
) -> Found:
    parts = {role: _part(root, paths, notes) for role, paths in places.items() if role != "test"}
    if places.get("test"):
        there = " and ".join(shown(path, root) for path in places["test"])
        notes.append(f"{there} is a test part: not used in training or validation")
    if not parts["train"].items:
        raise refusal(root, f"is a YOLO data set without an image in {parts['train'].place}", "images to train on")
    val = parts.get("val")
    if val is not None and not val.items:
        notes.append(f"{val.place} has no image")
        val = None
    about = f"{shown(file, root)}, {counted(len(classes), '{class|classes}')}"
    reader = YoloReader(len(classes), key_points)
    return Found("YOLO", about, parts["train"], val, classes, reader, tuple(notes))


def _places(root: Path, file: Path, content: Mapping[str, Any]) -> tuple[dict[Role, tuple[Path, ...]], list[str]]:
    """Return folders and lists of the parts that the description names, and what was taken otherwise than it says."""
    places: dict[Role, tuple[Path, ...]] = {}
    notes: list[str] = []
    given = [key for key in content if isinstance(key, str) and content[key]]
    for role in NAMES:
        key = next((key for key in given if role_of(key) == role), None)
        if key is None:
            continue
        values = content[key] if isinstance(content[key], list) else [content[key]]
        if role == "test":
            places[role] = tuple(_test_places(root, file, content, key, values))
            continue
        found = []
        for value in values:
            if not isinstance(value, str):
                raise InputError(
                    f"is {value!r:.60}", source=file, key=key, allowed="folders, or lists of images (.txt)"
                )
            path, note = place_of(root, file, content, key, value)
            found.append(path)
            if note:
                notes.append(note)
        places[role] = tuple(found)
    if "train" not in places:
        guessed = _folders_without_description(root)
        if "train" not in guessed:
            raise InputError("is missing", source=file, key="train", allowed="the folder of the training images")
        places = {role: (folder,) for role, folder in guessed.items()}
        notes.append(f"{shown(file, root)} names no training images: {shown(guessed['train'], root)} is taken")
    return places, notes


def _test_places(
    root: Path, file: Path, content: Mapping[str, Any], key: str, values: Iterable[object]
) -> Iterator[Path]:
    """Yield the folders and lists of the test part that are there: nobody needs them."""
    for value in values:
        if isinstance(value, str):
            with suppress(InputError):
                yield place_of(root, file, content, key, value)[0]


# ------------------------------------------------------------------------------------------------------------- parts


def _folders_without_description(root: Path) -> dict[Role, Path]:
    """Return the folders of images with YOLO labels where nothing names them; a single one is for training."""
    images, labels = named(root, "images"), named(root, "labels")
    if images is not None and labels is not None and images.is_dir() and not _are_of_voc(labels):
        parts = {role: folder for role, folder in role_folders(images).items() if images_below(folder)}
        return parts if "train" in parts else {"train": images}
    found: dict[Role, Path] = {}
    for role, folder in role_folders(root).items():
        inside, beside = named(folder, "images"), named(folder, "labels")
        if inside is not None and beside is not None and not _are_of_voc(beside):
            found[role] = inside
    found = found or _darknet_parts(root)
    if not found and any(named(root, name) for name in _NAME_FILES[:2]) and any(map(_labelled_beside, entries(root))):
        return {"train": root}
    if not found:  # Darknet's, as Roboflow and others export it: labels beside the images of each part
        parts = role_folders(root)
        found = {role: folder for role, folder in parts.items() if any(map(_labelled_beside, entries(folder)))}
    return found if "train" in found else {}


def _are_of_voc(labels: Path) -> bool:
    """Whether a folder of labels has PASCAL VOC's files and none of YOLO's."""
    files = files_below(labels)
    return any(file.suffix.lower() == ".xml" for file in files) and not any(map(_is_label, files))


def _darknet_parts(root: Path) -> dict[Role, Path]:
    """Return the folders ``obj_train_data`` and the like of CVAT's, by what they are called in between."""
    found: dict[Role, Path] = {}
    for folder in entries(root):
        part = re.fullmatch("obj_(.+)_data", folder.name, re.IGNORECASE)
        role = None if part is None else role_of(part[1])
        if role is not None and folder.is_dir():
            found.setdefault(role, folder)
    return found


def _labelled_beside(image: Path) -> bool:
    return is_image(image.name) and image.with_suffix(".txt").is_file()


def _part(root: Path, places: Iterable[Path], notes: list[str]) -> LabelPart:
    """Return the images of folders and lists with their label files."""
    images: dict[Path, None] = {}
    for place in places:
        images.update(dict.fromkeys(_listed(root, place, notes) if place.is_file() else images_below(place)))
    labels = _LabelFiles(root)
    items = [Labelled(shown(each, root), each, labels.of(each)) for each in images]
    items.sort(key=lambda item: item.name)
    named_places = " and ".join(shown(each, root) for each in places)
    used = {item.labels for item in items}
    folders = {folder for each in places if each.is_dir() and (folder := _labels_folder(root, each)).is_dir()}
    lost = [file for folder in sorted(folders) for file in files_below(folder) if _is_label(file) and file not in used]
    if lost:
        what = "{label file has no image and is|label files have no image and are} left out"
        notes.append(f"{counted(len(lost), what)}; the first: {shown(lost[0], root)}")
    note_sharing(root, items, notes)
    note_unread(root, (file for each in places if each.is_dir() for file in files_below(each)), notes)
    return LabelPart(named_places, tuple(items), _label_places(root, items[0].image) if items else "")


def _label_places(root: Path, image: Path) -> str:
    """Return where the label file of an image is looked for, in words."""
    beside = Path(shown(image.with_suffix(".txt"), root))
    folders = list(beside.parts[:-1])
    for index in range(len(folders) - 1, -1, -1):
        if folders[index].lower() == "images":
            folders[index] = "labels"
            return f"as {Path(*folders, beside.name).as_posix()} or {beside.as_posix()}, and so on"
    return f"as {beside.as_posix()}, and so on"


def _is_label(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and file.name.lower() not in _NO_LABELS


def _listed(root: Path, file: Path, notes: list[str]) -> Iterator[Path]:
    """Yield the images that a text file lists, relative to its folder or to the set's."""
    if file.suffix.lower() != ".txt":
        raise InputError("is no folder and no list of images", source=file, key="data.root", allowed="a .txt file")
    dropped, moved = 0, list[str]()
    for number, line in enumerate(read_text(file).lstrip("\ufeff").splitlines(), start=1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        choices = [folder / name for folder in (file.parent, root)]
        path = next((choice for choice in choices if is_there(choice, file=True)), None)
        if path is None:  # CVAT's have data/ before them, others the folders of another machine
            ends = list(tails(name))
            places = (number for number in (dropped, *range(len(ends))) if number < len(ends))
            found = next((each for each in places if is_there(root / ends[each], file=True)), None)
            if found is not None:
                dropped, path = found, root / ends[found]
                moved += [] if name.startswith("data/") else [name]
        if path is None:
            raise InputError(f"{name!r:.100} does not exist", source=file, key=f"line {number}", allowed="an image")
        if not is_image(path.name):
            raise InputError(f"{name!r:.100} is no image", source=file, key=f"line {number}", allowed="an image")
        yield plain_path(path)
    if moved:
        what = "{image is|images are} listed in a folder that is not there, and taken from the one"
        notes.append(f"{shown(file, root)}: {counted(len(moved), what)} in {root}; the first: {moved[0]}")


def _labels_folder(root: Path, folder: Path) -> Path:
    """Return the folder of the labels of the images in a folder: ``labels`` in place of the last ``images``."""
    parts = list(folder.relative_to(root).parts) if folder.is_relative_to(root) else list(folder.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].lower() == "images":
            above = Path(*parts[:index])
            labels = named((root if folder.is_relative_to(root) else Path()) / above, "labels")
            if labels is None:
                return folder
            return labels / Path(*parts[index + 1 :])
    return folder


class _LabelFiles:
    """The label files of images: in the folder of labels, or else beside the image; each folder is listed once.

    The ending is in any case, the name in any Unicode normal form: macOS writes another one than others.

    Args:
        root: The folder of the set.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Path, Path] = {}
        self._files: dict[Path, dict[str, Path]] = {}

    def of(self, image: Path) -> Path | None:
        """Return the label file of an image."""
        beside = image.parent
        if beside not in self._folders:
            self._folders[beside] = _labels_folder(self._root, beside)
        stems = (image.stem, normalize("NFC", image.stem))
        files = (self._of_folder(folder).get(stem) for folder in (self._folders[beside], beside) for stem in stems)
        return next(filter(None, files), None)

    def _of_folder(self, folder: Path) -> dict[str, Path]:
        """Return the label files of a folder by the names of their images."""
        if folder not in self._files:
            files = [file for file in entries(folder) if _is_label(file)]
            composed = {normalize("NFC", file.stem): file for file in files}
            self._files[folder] = composed | {file.stem: file for file in files}
        return self._files[folder]
