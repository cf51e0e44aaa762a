"""PASCAL VOC folders: an XML file an image, in ``Annotations`` or beside the images."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

from hitdet_nni.data.annotations.class_names import NAME, is_one_line
from hitdet_nni.data.layouts.parts import (
    Box,
    Found,
    Labelled,
    LabelPart,
    Notes,
    Role,
    Size,
    entries,
    files_below,
    is_image,
    named,
    note_sharing,
    note_unread,
    refusal,
    role_folders,
    role_of,
    shown,
)
from hitdet_nni.data.layouts.voc_devkit import read_objects
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text

_XML, _IMAGE_FOLDERS = ("Annotations", "xmls", "labels"), ("JPEGImages", "images", "imgs", "img", "data")
CVAT = "annotations.xml"
"""CVAT's own file, of all images."""

_NAME_FILES = ("labelmap.txt", "classes.txt", "labels.txt")
DIFFICULT = "{object is|objects are} marked difficult: neither learned nor counted as missed"
FROM_ZERO = (
    "{box begins|boxes begin} at pixel 0, where VOC counts from 1: {it is|they are} moved by a pixel as all others"
)


@dataclass(frozen=True)
class VocReader:
    """Reads VOC's XML files.

    Attributes:
        classes: Names of the classes.
    """

    classes: tuple[str, ...]

    @property
    def settings(self) -> object:
        """What the boxes depend on besides the names."""
        return None

    def read(self, item: Labelled, size: Size, notes: Notes) -> tuple[tuple[int, int], list[Box]]:
        """Return the size in the XML file, or the image's where it has none, and the boxes.

        Args:
            item: The image and its XML file.
            size: Gives the image's own size.
            notes: Takes difficult objects, and boxes that begin at 0.

        Raises:
            InputError: Naming file and place of what is no annotation.
        """
        if item.labels is None:
            return size(), []
        given, objects = read_objects(item.labels)
        numbers = {name: number for number, name in enumerate(self.classes)}
        boxes = []
        wide, high = given or size()
        for index, each in enumerate(objects):
            if each.difficult:
                notes.add(DIFFICULT, str(item.labels))
            if min(each.box[:2]) == -1:
                notes.add(FROM_ZERO, str(item.labels))
            if each.name not in numbers:
                raise InputError(f"is {each.name!r:.60}", source=item.labels, key="name", allowed=self.classes)
            left, top, width, height = each.box
            if left >= wide or top >= high or left + width <= 0 or top + height <= 0:
                problem, allowed = "lies outside of the image", f"a box that reaches into its {wide} x {high} pixels"
                raise InputError(problem, source=item.labels, key=f"object[{index}].bndbox", allowed=allowed)
            boxes.append(Box(numbers[each.name], each.box, crowd=each.difficult))
        return (wide, high), boxes


def find(root: Path) -> Found | None:
    """Return the PASCAL VOC set that lies in a folder; ``None``: there is none.

    Classes are in the order of ``labelmap.txt`` or ``classes.txt`` where there is such a file, or else of their names.

    Args:
        root: The folder.

    Raises:
        InputError: If an XML file or a list of images has a defect, or there is no image to train on.
    """
    notes: list[str] = []
    whole, places = _labelled(root, root, notes)
    if whole:
        parts, lists = _by_lists(root, whole, places)
    else:
        lists, parts = "", {}
        for role, each in role_folders(root).items():
            items, places = _labelled(root, each, notes)
            if items:
                parts[role] = LabelPart(shown(each, root), tuple(items.values()), places)
    if not parts:
        return None
    if not parts.get("train", LabelPart("", (), "")).items:
        raise refusal(root, "is a PASCAL VOC data set without images to train on", "train.txt in ImageSets/Main")
    if "test" in parts:
        notes.append(f"{parts['test'].place} is a test part: not used in training or validation")
    classes = _classes(root, [part for role, part in parts.items() if role != "test"])
    val = parts.get("val")
    about = f"XML files, {counted(len(classes), '{class|classes}')}{lists}"
    train = parts["train"]
    return Found(
        "PASCAL VOC", about, train, val if val and val.items else None, classes, VocReader(classes), tuple(notes)
    )


def _xml_files(folder: Path, *, below: bool) -> list[Path]:
    """Return the XML files of a folder, and where asked for those of the folders in it."""
    files = files_below(folder) if below else entries(folder)
    return [file for file in files if file.suffix.lower() == ".xml" and file.name != CVAT]


def _xml_place(folder: Path) -> tuple[Path, list[Path]] | None:
    """Return the folder of the XML files of a folder, and the files; ``None``: it has none.

    A folder in it that is for them alone, or for images, may have folders.
    """
    inside = [each for each in (named(folder, *_XML), named(folder, *_IMAGE_FOLDERS)) if each is not None]
    for place in (*inside, folder):
        files = _xml_files(place, below=place is not folder)
        if files:
            return place, files
    return None


def _labelled(root: Path, folder: Path, notes: list[str]) -> tuple[dict[str, Labelled], str]:
    """Return the images of a folder with their XML files, in a folder for each kind or side by side.

    An image has the file of its name in the same folder within the folder of all XML files, or else the only one of
    its name that no other image has so.

    Args:
        root: The folder of the whole set.
        folder: The folder of the part, or the same.
        notes: Takes what is left out.

    Returns:
        The images by their names below their folder, without endings; and where their XML files are, in words.
    """
    found, base = _xml_place(folder), named(folder, *_IMAGE_FOLDERS)
    if found is None:
        return {}, ""
    place, labels_there = found
    there = [] if base is None else files_below(base)
    if base is None or not any(is_image(each.name) for each in there):
        base, there = folder, entries(folder)
    images = [each for each in there if is_image(each.name)]
    if not images:
        raise refusal(root, f"has XML files in {shown(folder, root)}, and no images", "images in JPEGImages")
    note_unread(root, there, notes)
    files = {_name(file, place): file for file in labels_there}
    free: dict[str, list[Path]] = defaultdict(list)
    for name in files.keys() - {_name(image, base) for image in images}:
        free[Path(name).name].append(files[name])
    items = {}
    for image in sorted(images):
        name = _name(image, base)
        others = free.get(Path(name).name, [])
        labels = files.get(name) or (others[0] if len(others) == 1 else None)
        # Two images of one name and different endings are both told, by the whole name of the second.
        items[name if name not in items else image.relative_to(base).as_posix()] = Labelled(
            shown(image, root), image, labels
        )
    used = {item.labels for item in items.values()}
    lost = [file for file in files.values() if file not in used]
    if lost:
        what = "{XML file has no image and is|XML files have no image and are} left out"
        notes.append(f"{counted(len(lost), what)}; the first: {shown(lost[0], root)}")
    note_sharing(root, items.values(), notes)
    return items, f"in {shown(place, root)}"


def _name(file: Path, folder: Path) -> str:
    """Return the name of a file below a folder without its ending, in one Unicode form: macOS writes another."""
    return normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())


def _by_lists(root: Path, whole: Mapping[str, Labelled], places: str) -> tuple[dict[Role, LabelPart], str]:
    """Return the parts that ``ImageSets/Main`` lists, and a remark that says so.

    Without lists the parts are the folders of the images that are called so; without such all is for training.
    """
    lists: dict[Role, Path] = {}
    for file in entries(root / "ImageSets" / "Main"):
        role = "train" if file.stem in ("trainval", "default") else role_of(file.stem)
        if role is not None and file.suffix == ".txt" and not (role in lists and file.stem == "trainval"):
            lists[role] = file
    if "train" in lists and lists["train"].stem == "trainval" and "val" in lists:
        del lists["val"]  # what is in trainval.txt already
    if not lists:
        return _by_folders(root, whole, places), ""
    by_stem: dict[str, list[Labelled]] = defaultdict(list)
    for name, item in whole.items():
        by_stem[Path(name).name].append(item)
    parts: dict[Role, LabelPart] = {}
    for role, file in lists.items():
        chosen: dict[Path, Labelled] = {}
        for number, line in enumerate(read_text(file).lstrip("\ufeff").splitlines(), start=1):
            if not line.strip():
                continue
            meant = [item for item in (_meant(name, whole, by_stem) for name in _spellings(line)) if item is not None]
            if not meant:
                problem = f"{line.strip()!r:.100} is no image, or several"
                raise InputError(problem, source=file, key=f"line {number}", allowed="names of images")
            chosen[meant[0].image] = meant[0]
        ordered = sorted(chosen.values(), key=lambda item: item.name)
        parts[role] = LabelPart(shown(file, root), tuple(ordered), places)
    return parts, ", lists of images in ImageSets/Main"


def _by_folders(root: Path, whole: Mapping[str, Labelled], places: str) -> dict[Role, LabelPart]:
    """Return the parts by the folders that the images are in, where all are in one that is called so."""
    found: dict[Role, list[Labelled]] = defaultdict(list)
    for name, item in whole.items():
        folders = Path(name).parent.parts
        role = role_of(folders[0]) if folders else None
        if role is None:
            break
        found[role].append(item)
    if "train" not in found or sum(map(len, found.values())) < len(whole):
        items = tuple(whole.values())
        return {"train": LabelPart(shown(_base(items), root), items, places)}
    return {role: LabelPart(shown(_base(members), root), tuple(members), places) for role, members in found.items()}


def _base(items: Sequence[Labelled]) -> Path:
    """Return the folder that holds all of some images."""
    return Path(os.path.commonpath([item.image.parent for item in items]))


def _spellings(line: str) -> Iterator[str]:
    """Yield what a line of a list may name: all of it, what is in quotes, what stands before a class's mark."""
    name = normalize("NFC", line.strip())
    yield name
    if name[:1] == name[-1:] == '"':
        yield name[1:-1]
    marked = re.fullmatch(r"\"?(.*?)\"?\s+-?[01]", name)
    if marked is not None:
        yield marked[1]


def _meant(name: str, whole: Mapping[str, Labelled], by_stem: Mapping[str, Sequence[Labelled]]) -> Labelled | None:
    """Return the image that a list names: by its name below the folder of images, or by the last part of it alone."""
    name = name.replace("\\", "/")
    names = [name, str(Path(name).with_suffix(""))] if is_image(name) else [name]
    found = next((whole[each] for each in names if each in whole), None)
    if found is not None:
        return found
    several = next((by_stem[each] for each in (Path(each).name for each in names) if each in by_stem), [])
    return several[0] if len(several) == 1 else None


def _classes(root: Path, parts: Iterable[LabelPart]) -> tuple[str, ...]:
    found = {name for part in parts for item in part.items for name in _names(item.labels)}
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return tuple(sorted(found))
    lines = [line.strip() for line in read_text(file).lstrip("\ufeff").splitlines()]
    names = [line.partition(":")[0].strip() for line in lines if line and not line.startswith("#")]
    names = list(dict.fromkeys(name for name in names if name != "background" or name in found))
    broken = next((name for name in names if not is_one_line(name)), None)
    if broken is not None:
        raise InputError(f"has the class {broken!r:.60}", source=file, allowed=NAME)
    unknown = sorted(found - set(names))
    if unknown:
        raise InputError(
            f"lacks {unknown[0]!r:.60}, which XML files have", source=file, allowed="the names of all classes"
        )
    return tuple(names)


def _names(file: Path | None) -> frozenset[str]:
    """Return the classes of an XML file's objects; none of a file that the reader refuses, with all others."""
    if file is None:
        return frozenset()
    try:
        status = file.stat()
        return _names_at(file, status.st_mtime_ns, status.st_size)
    except (OSError, InputError):
        return frozenset()


@lru_cache(200_000)  # a folder is opened for each split, and again by each stage
def _names_at(file: Path, modified: int, size: int) -> frozenset[str]:
    return frozenset(each.name for each in read_objects(file)[1])
