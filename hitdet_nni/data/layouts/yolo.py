"""YOLO folders: Ultralytics' with a ``data.yaml``, Label Studio's with ``classes.txt``, CVAT's with ``obj.names``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from hitdet_nni.data.annotations.class_names import NAME, is_one_line
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
    shown,
)
from hitdet_nni.data.layouts.yolo_labels import YoloReader
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import expanded, is_there, read_text, read_yaml

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels")
_NO_LABELS = ("classes.txt", "notes.txt", "readme.txt", "requirements.txt", "predefined_classes.txt")


def find(root: Path) -> Found | None:
    """Return the YOLO set that lies in a folder; ``None``: there is none.

    Args:
        root: The folder.

    Raises:
        InputError: If its description names what is not there, or it has label files and no class names.
    """
    described = _description(root)
    if described is not None:
        file, content, others = described
        classes = _classes(file, content)
        places, notes = _places(root, file, content)
        if others:
            notes.append(f"{shown(file, root)} describes it, not {', '.join(shown(each, root) for each in others)}")
        return _found(root, file, classes, places, notes, _key_points(file, content))
    folders = _folders_without_description(root)
    if not folders:
        return None
    names = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if names is None:
        problem = "holds YOLO labels, and no file with the names of the classes"
        raise refusal(root, problem, "data.yaml with names, or classes.txt with a name a line")
    classes = tuple(line.strip() for line in read_text(names).lstrip("\ufeff").splitlines() if line.strip())
    _check_names(names, None, list(classes))
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


# ------------------------------------------------------------------------------------------------------- description


def _description(root: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """Return the YAML file that names the classes, its content, and others that do as well."""
    files = [each for each in entries(root) if each.suffix.lower() in (".yaml", ".yml") and each.is_file()]
    files.sort(key=lambda file: (file.stem.lower() not in ("data", "dataset"), file.name))
    found: list[tuple[Path, dict[str, Any]]] = []
    for file in files:
        try:
            content = read_yaml(file)
        except InputError:
            if file.stem.lower() in ("data", "dataset"):
                raise
            continue
        if isinstance(content, dict) and "names" in content:
            found.append((file, content))
    return (*found[0], [file for file, _ in found[1:]]) if found else None


def _classes(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, Mapping):
        if all(isinstance(key, str) and re.fullmatch("0|[1-9][0-9]{0,8}", key) for key in names):
            names = {int(key): name for key, name in names.items()}
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            problem = f"has the keys {', '.join(map(str, names))}"
            raise InputError(problem, source=file, key="names", allowed=f"the numbers 0 to {len(names) - 1}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"is {names!r:.60}", source=file, key="names", allowed="a list of the classes")
    # Cards are called 9 and 10, and YAML reads them as numbers; yes and no as truth.
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise InputError(f"is {name!r:.60}", source=file, key=f"names[{number}]", allowed="a name, in quotes")
    classes = [str(name).strip() for name in names]
    _check_names(file, "names", classes)
    count = content.get("nc")
    if count is not None and count != len(classes):
        raise InputError(
            f"is {count!r:.60}, names has {len(classes)}", source=file, key="nc", allowed="the same number"
        )
    return tuple(classes)


def _check_names(file: Path, key: str | None, classes: list[str]) -> None:
    if not classes:
        raise InputError("names no class", source=file, key=key, allowed="a name a line")
    for number, name in enumerate(classes):
        if not name or name in classes[:number]:
            problem = f"name {number} is {name!r:.60}" + (", as another one is" if name else "")
            raise InputError(problem, source=file, key=key, allowed="names, each once")
        if not is_one_line(name):
            raise InputError(f"name {number} is {name!r:.60}", source=file, key=key, allowed=NAME)


def _key_points(file: Path, content: Mapping[str, Any]) -> int | None:
    """Return how many numbers of key points a row has behind its box."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(each) is int and each > 0 for each in shape):
        raise InputError(f"is {shape!r:.60}", source=file, key="kpt_shape", allowed="two numbers")
    return int(shape[0] * shape[1])


def _places(root: Path, file: Path, content: Mapping[str, Any]) -> tuple[dict[Role, tuple[Path, ...]], list[str]]:
    """Return folders and lists of the parts that the description names, and what was taken otherwise than it says."""
    places: dict[Role, tuple[Path, ...]] = {}
    notes: list[str] = []
    for role, keys in NAMES.items():
        key = next((key for key in keys if content.get(key)), None)
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
            path, note = _place(root, file, content, key, value)
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
                yield _place(root, file, content, key, value)[0]


def _place(root: Path, file: Path, content: Mapping[str, Any], key: str, value: str) -> tuple[Path, str | None]:
    """Return where a folder or list that the description names lies, and a line where that is not where it says.

    Roboflow writes ``../train/images`` for what lies beside the file, and ``path`` is often that of another machine.
    """
    base = content.get("path")
    if base is not None and not isinstance(base, str):
        raise InputError(f"is {base!r:.60}", source=file, key="path", allowed="a folder, in quotes")
    try:
        named_by_file = file.parent / expanded(base or ".")
    except InputError as error:
        raise InputError(error.problem, source=file, key="path", allowed=error.allowed) from None
    written, value = value, value.replace("\\", "/")
    named_by_file /= value
    inside = re.sub(r"^(\.\./)+", "", value)
    for number, path in enumerate((named_by_file, file.parent / value, file.parent / inside, root / inside)):
        if is_there(path) and not (number and Path(value).is_absolute()):
            place = _plain(path)
            if number == 0:
                return place, None
            if number == 1 and base is not None:
                note = f"has path {base!r}, where there is no {written!r} ({key}): that in {root} is taken"
            else:
                note = f"names {written!r} for {key}: {shown(place, root)} is taken"
            return place, f"{shown(file, root)} {note}"
    raise InputError(f"{value!r:.100} does not exist", source=file, key=key, allowed=f"a folder or list in {root}")


def _plain(path: Path) -> Path:
    """Return the path without ``.`` and, where no link is in between, ``..``."""
    return path.resolve() if ".." in path.parts else path


# ------------------------------------------------------------------------------------------------------------- parts


def _folders_without_description(root: Path) -> dict[Role, Path]:
    """Return the folders of images with YOLO labels where nothing names them; a single one is for training."""
    images, labels = named(root, "images"), named(root, "labels")
    if images is not None and labels is not None and images.is_dir():
        parts = {role: folder for role, folder in role_folders(images).items() if images_below(folder)}
        return parts if "train" in parts else {"train": images}
    found: dict[Role, Path] = {}
    for role, folder in role_folders(root).items():
        inside = named(folder, "images")
        if inside is not None and named(folder, "labels") is not None:
            found[role] = inside
    darknet: dict[Role, Path] = {"train": root / "obj_train_data", "val": root / "obj_valid_data"}
    found = found or {role: folder for role, folder in darknet.items() if folder.is_dir()}
    if not found and any(named(root, name) for name in _NAME_FILES[:2]) and any(map(_labelled_beside, entries(root))):
        return {"train": root}
    return found if "train" in found else {}


def _labelled_beside(image: Path) -> bool:
    return is_image(image.name) and image.with_suffix(".txt").is_file()


def _part(root: Path, places: Iterable[Path], notes: list[str]) -> LabelPart:
    """Return the images of folders and lists with their label files."""
    images: dict[Path, None] = {}
    for place in places:
        images.update(dict.fromkeys(_listed(root, place) if place.is_file() else images_below(place)))
    listings: dict[Path, dict[str, Path]] = {}
    items = [Labelled(shown(each, root), each, _labels_of(root, each, listings)) for each in images]
    items.sort(key=lambda item: item.name)
    named_places = " and ".join(shown(each, root) for each in places)
    used = {item.labels for item in items}
    folders = {labels for each in places if each.is_dir() and (labels := _labels_folder(root, each)).is_dir()}
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


def _listed(root: Path, file: Path) -> Iterator[Path]:
    """Yield the images that a text file lists, relative to its folder or to the set's."""
    if file.suffix.lower() != ".txt":
        raise InputError("is no folder and no list of images", source=file, key="data.root", allowed="a .txt file")
    for number, line in enumerate(read_text(file).lstrip("\ufeff").splitlines(), start=1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        choices = [folder / name for folder in (file.parent, root)]
        choices += [root / PurePosixPath(name).relative_to("data")] if name.startswith("data/") else []  # CVAT's
        path = next((choice for choice in choices if is_there(choice, file=True)), None)
        if path is None:
            raise InputError(f"{name!r:.100} does not exist", source=file, key=f"line {number}", allowed="an image")
        if not is_image(path.name):
            raise InputError(f"{name!r:.100} is no image", source=file, key=f"line {number}", allowed="an image")
        yield _plain(path)


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


def _labels_of(root: Path, image: Path, listings: dict[Path, dict[str, Path]]) -> Path | None:
    """Return the label file of an image: in the folder of labels, or else beside it.

    The ending is in any case, the name in any Unicode normal form: macOS writes another one than others.
    """
    folders = (_labels_folder(root, image.parent), image.parent)
    for folder in folders:
        if folder not in listings:
            files = [file for file in entries(folder) if _is_label(file)]
            composed = {normalize("NFC", file.stem): file for file in files}
            listings[folder] = composed | {file.stem: file for file in files}
        for stem in (image.stem, normalize("NFC", image.stem)):
            if stem in listings[folder]:
                return listings[folder][stem]
    return None
