"""PASCAL VOC folders: an XML file an image, in ``Annotations`` or beside the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
    images_below,
    is_image,
    named,
    note_sharing,
    refusal,
    role_folders,
    role_of,
    shown,
)
from hitdet_nni.data.layouts.voc_devkit import read_objects
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text

_XML, _IMAGE_FOLDERS = ("Annotations", "xmls", "labels"), ("JPEGImages", "images", "imgs", "img")
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
        for each in objects:
            if each.difficult:
                notes.add(DIFFICULT, str(item.labels))
            if min(each.box[:2]) == -1:
                notes.add(FROM_ZERO, str(item.labels))
            if each.name not in numbers:
                raise InputError(f"is {each.name!r:.60}", source=item.labels, key="name", allowed=self.classes)
            boxes.append(Box(numbers[each.name], each.box, crowd=each.difficult))
        return given or size(), boxes


def find(root: Path) -> Found | None:
    """Return the PASCAL VOC set that lies in a folder; ``None``: there is none.

    Classes are in the order of ``labelmap.txt`` or ``classes.txt`` where there is such a file, or else of their names.

    Args:
        root: The folder.

    Raises:
        InputError: If an XML file or a list of images has a defect, or there is no image to train on.
    """
    notes: list[str] = []
    whole = _labelled(root, root, notes)
    if whole:
        parts, lists = _by_lists(root, whole)
    else:
        lists = ""
        folders = {role: folder for role, folder in role_folders(root).items() if _xml_folder(folder) is not None}
        parts = {
            role: LabelPart(shown(each, root), _labelled(root, each, notes), _label_places(root, each))
            for role, each in folders.items()
        }
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


def _xml_files(folder: Path | None) -> dict[str, Path]:
    """Return the XML files of a folder by their names without the ending."""
    return {} if folder is None else {file.stem: file for file in entries(folder) if file.suffix.lower() == ".xml"}


def _xml_folder(folder: Path) -> Path | None:
    """Return the folder of the XML files of a folder; ``None``: it has none."""
    return next(
        (each for each in (named(folder, *_XML), named(folder, *_IMAGE_FOLDERS), folder) if _xml_files(each)), None
    )


def _label_places(root: Path, folder: Path) -> str:
    """Return where the XML files of a folder's images are looked for, in words."""
    place = _xml_folder(folder)
    return "beside the images" if place is None else f"in {shown(place, root)}"


def _labelled(root: Path, folder: Path, notes: list[str]) -> tuple[Labelled, ...]:
    """Return the images of a folder with their XML files: in a folder for each kind, or side by side."""
    labels, inside = _xml_files(_xml_folder(folder)), named(folder, *_IMAGE_FOLDERS)
    images = images_below(inside) if inside is not None else [each for each in entries(folder) if is_image(each.name)]
    if not labels:
        return ()
    if not images:
        raise refusal(root, f"has XML files in {shown(folder, root)}, and no images", "images in JPEGImages")
    stems = {image.stem for image in images}
    lost = [file for stem, file in labels.items() if stem not in stems]
    if lost:
        what = "{XML file has no image and is|XML files have no image and are} left out"
        notes.append(f"{counted(len(lost), what)}; the first: {shown(lost[0], root)}")
    items = tuple(Labelled(shown(each, root), each, labels.get(each.stem)) for each in sorted(images))
    note_sharing(root, items, notes)
    return items


def _by_lists(root: Path, whole: Sequence[Labelled]) -> tuple[Mapping[Role, LabelPart], str]:
    """Return the parts that ``ImageSets/Main`` lists, and a remark that says so; without it all is for training."""
    items, places = {item.image.stem: item for item in whole}, _label_places(root, root)
    lists: dict[Role, Path] = {}
    for file in entries(root / "ImageSets" / "Main"):
        role = "train" if file.stem in ("trainval", "default") else role_of(file.stem)
        if role is not None and file.suffix == ".txt" and not (role in lists and file.stem == "trainval"):
            lists[role] = file
    if "train" in lists and lists["train"].stem == "trainval" and "val" in lists:
        del lists["val"]  # what is in trainval.txt already
    if not lists:
        return {"train": LabelPart(shown(whole[0].image.parent, root), tuple(whole), places)}, ""
    parts: dict[Role, LabelPart] = {}
    for role, file in lists.items():
        chosen = {}
        for number, line in enumerate(read_text(file).lstrip("\ufeff").splitlines(), start=1):
            stem = line.split()[0] if line.split() else None
            if stem is not None and Path(stem).name not in items:
                raise InputError(f"{stem!r:.100} is no image", source=file, key=f"line {number}", allowed="images")
            if stem is not None:
                chosen[Path(stem).name] = items[Path(stem).name]
        ordered = sorted(chosen.values(), key=lambda item: item.name)
        parts[role] = LabelPart(shown(file, root), tuple(ordered), places)
    return parts, ", lists of images in ImageSets/Main"


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
