"""What annotation files write otherwise than COCO's own, and mean without doubt: taken as meant, and told.

Nothing is lost by it: a whole number with a decimal point is that number, a box without an area has width times height.
Whatever could mean two things is left as it is, for the checks to refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

from hitdet_nni.data.annotations.coco_document import CocoDocument, Entry, is_number, show
from hitdet_nni.data.images.image_folder import ImageFolder
from hitdet_nni.data.wording import counted

Kind = Literal["encoding", "number", "flag", "area", "iscrowd", "ignore", "name", "root", "ids"]
"""The kinds of changes, in the order of their notes."""

_OF_FILE: Final[Mapping[Kind, str]] = {
    "encoding": "its text is {first}: read as that",
    "root": "the category {first} has no boxes and only groups the others: left out",
    "ids": "annotation ids are renumbered from 1: COCO's evaluation would count the box of id {first} wrongly",
}
"""What is said of a file as a whole."""

_OF_VALUES: Final[Mapping[Kind, str]] = {
    "number": "{whole number is|whole numbers are} written with a decimal point, {|the first of them }{first}: "
    "taken as {an integer|integers}",
    "flag": "{value of iscrowd is no integer|values of iscrowd are no integers}, {|the first of them }{first}: "
    "taken as 0 or 1",
    "area": "{box|boxes} without area: width times height is taken",
    "iscrowd": "{box|boxes} without iscrowd: 0 is taken",
    "ignore": "{box is marked ignore: taken as a crowd|boxes are marked ignore: taken as crowds}, in training and in "
    "evaluation",
    "name": "{file name has|file names have} another case or Unicode form than on disk, {|the first of them }{first}: "
    "taken as on disk",
}
"""What is said of values, behind their number."""

LARGEST_ID: Final = 2**53
"""Largest id of a box that is kept: beyond it a float, as pycocotools keeps ids in, is no integer of its own."""


class Changes:
    """What was taken otherwise than it stands in a file: counted, and listed where that is asked for.

    Args:
        listed: Keep a line for each change.

    Attributes:
        lines: ``place: old -> new``, one for each change.
    """

    def __init__(self, *, listed: bool = False) -> None:
        self.lines: list[str] = []
        self._listed = listed
        self._counts: Counter[Kind] = Counter()
        self._first: dict[Kind, str] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._counts)

    def add(
        self, kind: Kind, place: tuple[str, int, str], entry: Entry, old: object, new: object, first: str | None = None
    ) -> None:
        """Count a change.

        Args:
            kind: Which one.
            place: List, index and key of the value.
            entry: The entry that it is in.
            old: What stands in the file.
            new: What is taken.
            first: What the note shows of the first of its kind; by default place and old value.
        """
        self._counts[kind] += 1
        name, index, key = place
        if kind not in self._first:
            self._first[kind] = f"{name}[{index}].{key} {show(old)}" if first is None else first
        if self._listed:
            number = f" (id {entry['id']})" if type(entry.get("id")) is int else ""
            before = old if isinstance(old, Missing) else show(old)
            self.lines.append(f"{name}[{index}]{number}{key and f'.{key}'}: {before} -> {new}")

    def note(self, kind: Kind, what: str) -> None:
        """Note what is true of the file as a whole."""
        self._counts[kind] += 1
        self._first.setdefault(kind, what)
        if self._listed:
            self.lines.append(_note(kind, 1, what))

    def notes(self) -> tuple[str, ...]:
        """Return one line for each kind of change."""
        return tuple(
            _note(kind, self._counts[kind], self._first[kind]) for kind in get_args(Kind) if kind in self._first
        )


def _note(kind: Kind, count: int, first: str) -> str:
    text = _OF_FILE[kind] if kind in _OF_FILE else counted(count, _OF_VALUES[kind])
    return text.replace("{first}", first)


class Missing(str):
    """What stands for the value of a key that is not there."""

    __slots__ = ()


_MISSING: Final = Missing("missing")


def normalize(document: CocoDocument, folder: ImageFolder, changes: Changes) -> Entry | None:
    """Make of a document what it means, in place.

    Args:
        document: A parsed file, of whose values nothing is known.
        folder: Where its images lie.
        changes: Takes what was changed.

    Returns:
        The category that was left out, if one was.
    """
    if document.encoding is not None:
        changes.note("encoding", document.encoding)
    _whole_numbers("images", document.images, ("id", "width", "height"), changes)
    _whole_numbers("categories", document.categories, ("id",), changes)
    _whole_numbers("annotations", document.annotations, ("id", "image_id", "category_id"), changes)
    _file_names(document.images, folder, changes)
    for index, entry in enumerate(document.annotations):
        _area(index, entry, changes)
        _crowd(index, entry, changes)
    return _leave_out_root(document, changes)


def renumber_annotations(document: CocoDocument, changes: Changes) -> None:
    """Number the annotations from 1 where COCO's evaluation would not take an id for one.

    pycocotools keeps the id of the box that a detection has found among floats, where 0 stands for none and the sign
    is asked for (``COCOeval.evaluateImg``).

    Args:
        document: A checked document, whose ids are unique integers.
        changes: Takes the change.
    """
    unfit = [entry["id"] for entry in document.annotations if not 0 < entry["id"] <= LARGEST_ID]
    if unfit:
        changes.note("ids", show(unfit[0]))
        for number, entry in enumerate(document.annotations, start=1):
            entry["id"] = number


def _whole_numbers(name: str, entries: Iterable[Entry], keys: tuple[str, ...], changes: Changes) -> None:
    for index, entry in enumerate(entries):
        for key in keys:
            value = entry.get(key)
            if type(value) is float and value.is_integer() and abs(value) <= LARGEST_ID:
                entry[key] = int(value)
                changes.add("number", (name, index, key), entry, value, int(value))


def _file_names(images: Iterable[Entry], folder: ImageFolder, changes: Changes) -> None:
    for index, entry in enumerate(images):
        name = entry.get("file_name")
        if type(name) is not str or folder.holds(name):
            continue
        found = folder.other_form(name)
        if found is not None:
            entry["file_name"] = found
            new = f"{show(found)} (its form on disk)"
            changes.add("name", ("images", index, "file_name"), entry, name, new, show(name))


def _area(index: int, entry: Entry, changes: Changes) -> None:
    area, box = entry.get("area", _MISSING), entry.get("bbox")
    if area is not _MISSING and area is not None and not (is_number(area) and area == 0):
        return
    if type(box) is not list or len(box) != 4 or not (is_number(box[2]) and is_number(box[3])):
        return
    if area is _MISSING or min(box[2:]) > 0:
        entry["area"] = box[2] * box[3]
        changes.add("area", ("annotations", index, "area"), entry, area, entry["area"])


def _crowd(index: int, entry: Entry, changes: Changes) -> None:
    if entry.get("iscrowd", 0) is None:
        del entry["iscrowd"]
    crowd, ignore = entry.get("iscrowd", _MISSING), entry.get("ignore")
    if type(crowd) in (bool, float) and crowd in (0, 1):
        entry["iscrowd"] = int(crowd)
        changes.add("flag", ("annotations", index, "iscrowd"), entry, crowd, int(crowd))
    ignored = type(ignore) in (bool, int, float) and ignore == 1
    if ignored and entry.get("iscrowd", 0) in (0, 1):
        entry["iscrowd"] = 1
        del entry["ignore"]
        changes.add("ignore", ("annotations", index, "ignore"), entry, ignore, "iscrowd 1")
    elif crowd is _MISSING:
        entry["iscrowd"] = 0
        changes.add("iscrowd", ("annotations", index, "iscrowd"), entry, _MISSING, 0)


def _leave_out_root(document: CocoDocument, changes: Changes) -> Entry | None:
    """Leave out the category of Roboflow's exports that has the project's name and groups all others."""
    roots = [index for index, entry in enumerate(document.categories) if entry.get("supercategory") == "none"]
    if len(roots) != 1 or len(document.categories) < 2:
        return None
    (index,) = roots
    root = document.categories[index]
    if type(root.get("id")) is not int or type(root.get("name")) is not str:
        return None
    others = document.categories[:index] + document.categories[index + 1 :]
    if any(entry.get("supercategory") != root.get("name") for entry in others):
        return None
    if any(entry.get("category_id") == root.get("id") for entry in document.annotations):
        return None
    document.categories = others
    place = ("categories", index, "")
    changes.add(
        "root", place, root, root.get("name"), "left out", f"{show(root.get('name'))} (id {show(root.get('id'))})"
    )
    return root
