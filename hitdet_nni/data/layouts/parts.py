"""What a recognised folder consists of: its parts, of images with one annotation file or with a label file each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from hitdet_nni.data.images.image_files import IMAGE_SUFFIXES
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

UNREAD = (".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jxl", ".nef", ".svg")
"""Endings of images that are not read: OpenCV does so of some alone, and not everywhere."""

SUFFIXES = tuple(sorted(IMAGE_SUFFIXES - set(UNREAD)))
"""Endings of images, in any case."""

Split = Literal["train", "val"]
"""What a set consists of: training images and validation images."""

SPLITS: tuple[Split, ...] = get_args(Split)

Role = Literal[Split, "test"]
"""What a part of a folder is for."""

NAMES: Mapping[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What tools call the parts of a set, in any case."""


@dataclass(frozen=True)
class Labelled:
    """An image with its label file.

    Attributes:
        name: What images are ordered by, with ``/`` between folders.
        image: The image.
        labels: Its label file; ``None``: it has no boxes.
    """

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Box:
    """A box of an image.

    Attributes:
        label: Number of its class, from 0.
        box: Left, top, width and height in pixels.
        crowd: Whether it is neither to be learned nor to be counted as missed.
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass
class Notes:
    """What was read otherwise than it stands in the files: how often, and where first.

    Attributes:
        seen: Count and first place by what it is, as :func:`~hitdet_nni.data.wording.counted` takes it.
    """

    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, place: str, count: int = 1) -> None:
        """Note something.

        Args:
            what: What it is, as :func:`~hitdet_nni.data.wording.counted` takes it.
            place: Where.
            count: How often.
        """
        before, first = self.seen.get(what, (0, place))
        self.seen[what] = (before + count, first)

    def lines(self) -> list[str]:
        """Return a line for each."""
        return [f"{counted(count, what)}; the first: {first}" for what, (count, first) in self.seen.items()]


Size = Callable[[], tuple[int, int]]
"""Gives width and height of an image as training reads it, in pixels; takes the time to decode it."""


class LabelReader(Protocol):
    """Reads the label files of one format."""

    @property
    def settings(self) -> object:
        """All that the boxes depend on besides the label files, for the name of the file that is written of them."""

    def read(self, item: Labelled, size: Size, notes: Notes) -> tuple[tuple[int, int], list[Box]]:
        """Return the width and height that the labels are for, and the boxes.

        Args:
            item: The image and its label file.
            size: Gives the image's own size.
            notes: Takes what is read otherwise than it stands there.

        Raises:
            InputError: Naming the label file and the place.
        """


@dataclass(frozen=True)
class CocoPart:
    """A part that has a COCO annotation file.

    Attributes:
        ann: The annotation file.
        images: The folder that its file names are relative to.
    """

    ann: Path
    images: Path

    def about(self, root: Path) -> str:
        """Return the part in words."""
        return f"{shown(self.ann, root)} (images in {shown(self.images, root)})"


@dataclass(frozen=True)
class LabelPart:
    """A part whose images have a label file each.

    Attributes:
        place: Where it lies, in words.
        items: The images in the order of their names.
        label_places: Where their label files were looked for, in words.
    """

    place: str
    items: tuple[Labelled, ...]
    label_places: str

    def about(self, root: Path) -> str:
        """Return the part in words."""
        return f"{self.place} ({len(self.items)})"


@dataclass(frozen=True)
class Found:
    """A folder of a known layout.

    Attributes:
        kind: What the layout is called.
        about: What was recognised, in words: files, number of classes.
        train: The training part.
        val: The validation part; ``None``: it is to be split off.
        classes: Class names, where the parts have label files.
        reader: Reads the label files.
        notes: What the user should know, a line each.
    """

    kind: str
    about: str
    train: CocoPart | LabelPart
    val: CocoPart | LabelPart | None
    classes: tuple[str, ...] = ()
    reader: LabelReader | None = None
    notes: tuple[str, ...] = ()


class NoTrainingPartError(InputError):
    """A folder has a part of a data set, and none to train on."""


def refusal(root: Path, problem: str, allowed: str) -> InputError:
    """Return the error about a folder that ``data.root`` names."""
    return InputError(problem, source=root, key="data.root", allowed=allowed)


def shown(path: Path, root: Path) -> str:
    """Return a path as messages show it: relative to the folder where it lies in it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def role_of(name: str) -> Role | None:
    """Return which part a name of a folder or file speaks of: ``train2017``, ``Valid``, ``test``; ``None`` of none."""
    plain = name.lower().rstrip("0123456789")
    return next((role for role, names in NAMES.items() if plain in names), None)


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, by name, without what is hidden; nothing where it is no folder.

    Raises:
        InputError: If it may not be read.
    """
    try:
        return sorted(each for each in folder.iterdir() if not each.name.startswith((".", "__MACOSX")))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=folder, key="data.root") from None


def role_folders(folder: Path) -> dict[Role, Path]:
    """Return the folders of the parts inside a folder; of several for one part the one that the shortest name has."""
    found: dict[Role, Path] = {}
    for each in sorted(entries(folder), key=lambda path: (len(path.name), path.name)):
        role = role_of(each.name)
        if role is not None and each.is_dir():
            found.setdefault(role, each)
    return found


def named(folder: Path, *names: str) -> Path | None:
    """Return the first of some names that a folder holds, in any case of letters."""
    there = {each.name.lower(): each for each in entries(folder)}
    return next((there[name.lower()] for name in names if name.lower() in there), None)


def is_image(name: str) -> bool:
    """Whether a file name is one of an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def files_below(folder: Path, key: str | None = "data.root") -> list[Path]:
    """Return all files in a folder and the folders in it, links followed, by name; hidden ones are left out.

    Args:
        folder: The folder.
        key: What named it, for messages.

    Raises:
        InputError: If a folder may not be read.
    """
    found: list[Path] = []
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be read ({error.strerror})", source=error.filename, key=key)

    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(path, name) for name in names if not name.startswith(".")]
    return sorted(found)


def images_below(folder: Path) -> list[Path]:
    """Return all images in a folder and the folders in it, by name."""
    return [file for file in files_below(folder) if is_image(file.name)]


def note_unread(root: Path, files: Iterable[Path], notes: list[str]) -> None:
    """Note images of formats that are not read, which are left out with their objects."""
    unread = [file for file in files if file.suffix.lower() in UNREAD]
    if unread:
        formats = ", ".join(sorted({file.suffix.lower() for file in unread}))
        what = f"{{image|images}} of a format that is not read ({formats}) {{is|are}} left out: convert {{it|them}}"
        notes.append(f"{counted(len(unread), what)}; the first: {shown(unread[0], root)}")


def note_sharing(root: Path, items: Iterable[Labelled], notes: list[str]) -> None:
    """Note label files that belong to several images: those of one name and different endings."""
    counts = Counter(item.labels for item in items if item.labels is not None)
    shared = [labels for labels, count in counts.items() if count > 1]
    if shared:
        first = shown(shared[0], root)
        what = "{label file is that|label files are those} of several images of one name"
        notes.append(f"{counted(len(shared), what)}; the first: {first}")
