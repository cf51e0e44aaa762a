"""A corrected copy of annotation files: what can be mended is, what cannot be kept is left out, and each is told.

What decides is what checks: an entry is left out for the very defect that would refuse it, so that what is written
passes. What only a person can decide, such as two classes of one name, is refused. Labels of another format than COCO's
become COCO files, less the images whose label file or pixels have a defect.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.data.annotations.class_names import folded
from hitdet_nni.data.annotations.coco import check_document
from hitdet_nni.data.annotations.coco_document import (
    LISTS,
    CocoDocument,
    DocumentSource,
    Entry,
    is_number,
    read_document,
    show,
)
from hitdet_nni.data.annotations.normalization import LARGEST_ID, Changes, normalize
from hitdet_nni.data.checks.other_sizes import other_sizes
from hitdet_nni.data.checks.rewriting import (
    boxes_of_corners,
    boxes_of_polygons,
    files_of_urls,
    names_in_one_line,
    numbers_of_images,
)
from hitdet_nni.data.images.image_folder import ImageFolder, stays_inside
from hitdet_nni.data.images.reading import decoded_size, thin_problem
from hitdet_nni.data.layouts.parts import SPLITS, Split
from hitdet_nni.data.layouts.split import split_off
from hitdet_nni.data.sources import split_parts
from hitdet_nni.errors import InputError
from hitdet_nni.io import write_text

_PLACE: Final = re.compile(r"(images|annotations|categories)\[(\d+)\]")
_INTEGER: Final = re.compile(r"\s*[-+]?[0-9]{1,15}(\.0*)?\s*")
_NUMBER: Final = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,2})?\s*")


@dataclass(frozen=True)
class Repaired:
    """A corrected file.

    Attributes:
        split: ``"train"`` or ``"val"``.
        source: The file that it was made from.
        images: The folder of its images.
        file: The file that was written.
        changes: ``place: old -> new``, a line each; empty if nothing was wrong.
        left_out: What is wrong with images and label files of the folder that `source` was made of, whose images are
            left out of it: ``place: problem: the image is left out``, a line each.
        rest: Whether it has what was split off from the file before, whose changes are told there.
    """

    split: str
    source: Path
    images: Path
    file: Path
    changes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    rest: bool = False


def repair(settings: DataSettings, seed: int, out: Path, input_size: tuple[int, int] | None = None) -> list[Repaired]:
    """Write corrected annotation files; those that they are made from stay as they are.

    Args:
        settings: The ``data`` section.
        seed: Seed of the embedded set.
        out: Folder in which ``instances_train.json`` and ``instances_val.json`` are written; with a number where a
            split has several files. A folder without a validation part is split as it would be without this.
        input_size: Height and width that training resizes images to fit; ``None``: not looked at.

    Returns:
        What was written, in the order of the settings.

    Raises:
        InputError: If the settings name no data, a file is there already, or a defect cannot be mended; nothing is
            written then.
    """
    defects: dict[Split, list[InputError]] = {split: [] for split in SPLITS}
    splits = split_parts(settings, seed, defects)
    for split in SPLITS:
        if not splits[split]:
            problem = f"no box of {split} would be left: {defects[split][0]}: --fix cannot mend it"
            raise InputError(problem, source=settings.root, key="data.root")
    plan = [
        (split, ann, images, out / f"instances_{split}{f'_{number}' if len(splits[split]) > 1 else ''}.json")
        for split in SPLITS
        for number, (ann, images) in enumerate(splits[split], start=1)
    ]
    for *_, target in plan:
        if target.exists() or target.is_symlink():
            raise InputError("exists already", source=target, key="--fix", allowed="a folder that lacks this file")
    if splits.split_off:
        ((_, ann, images, _), _) = plan
        one = _Repair(ann, images, "data.root", input_size)
        one.mend()
        mended = [one, one]
        texts = [one.text(ids) for ids in one.split(settings.val_share, settings.val_seed)]
    else:
        mended = [_Repair(ann, images, f"data.{split}_ann", input_size) for split, ann, images, _ in plan]
        for each in mended:
            each.mend()
        _agree_on_classes(mended)
        texts = [each.text() for each in mended]
    written: list[Repaired] = []
    for (split, ann, images, target), each, text in zip(plan, mended, texts, strict=True):
        write_text(target, text)
        rest = any(each is other for other in mended[: len(written)])
        told = () if rest else tuple(each.lines)
        written.append(Repaired(split, ann, images, target, told, _places(defects[split]), rest))
    return written


def _agree_on_classes(mended: Sequence[_Repair]) -> None:
    """Give all files the classes of the first, in its order and with its ids, and behind these what others have.

    A class whose name differs from one of the first in case or spaces alone is that one.
    """
    first = dict(mended[0].classes)
    spelled = Counter(map(folded, first))
    meant = {folded(name): name for name in first if spelled[folded(name)] == 1}
    for each in mended[1:]:
        there = Counter(map(folded, each.classes))
        for name in list(each.classes):
            new = meant.get(folded(name), name)
            if name not in first and new not in each.classes and there[folded(name)] == 1:
                each.rename_class(name, new)
    for name in (name for each in mended[1:] for name in each.classes):
        first.setdefault(name, max(first.values()) + 1)
    for each in mended:
        each.take_classes(first, mended[0].name)


def _places(defects: Sequence[InputError]) -> tuple[str, ...]:
    """Return a line for each defect of an image or a label file."""
    return tuple(
        ": ".join(part for part in (defect.source, defect.key, defect.problem, "the image is left out") if part)
        for defect in defects
    )


class _Repair:
    """The mending of one file.

    Attributes:
        lines: What was changed.
    """

    def __init__(self, ann: Path, images: Path, key: str, input_size: tuple[int, int] | None) -> None:
        self.lines: list[str] = []
        self._broken: dict[int, str] = {}  # what is wrong with the file of an image, by the entry's id()
        self._ann, self._key, self._input_size = ann, key, input_size
        self._folder = ImageFolder(images)
        self._document = read_document(DocumentSource(ann, key))
        # Places are those of the file that was read, whatever has been left out since.
        self._places = {
            id(entry): f"{name}[{index}]" for name in LISTS for index, entry in enumerate(getattr(self._document, name))
        }

    def mend(self) -> None:
        """Correct the document.

        Raises:
            InputError: If a defect cannot be mended.
        """
        if not self._folder.path.is_dir():
            problem = f"their folder {self._folder.path} does not exist"
            raise DocumentSource(self._ann, self._key).error("images", problem, "a folder of images")
        self._read_texts()
        for rewritten in (
            names_in_one_line(self._document),
            files_of_urls(self._document, self._folder),
            numbers_of_images(self._document),
            boxes_of_polygons(self._document),
            boxes_of_corners(self._document),
        ):
            for entry, key, new in rewritten:
                self._set(entry, key, new)
        self._compute_areas()
        changes = Changes(listed=True)
        normalize(self._document, self._folder, changes)
        self.lines += changes.lines
        for entry in self._document.images:
            self._find_file(entry)
        self._settle_sizes()
        self._leave_out_defects()
        self._number_annotations()

    def text(self, ids: Collection[int] | None = None) -> str:
        """Return the document, or the images of some ids with their boxes, as JSON."""
        document = self._document
        images, boxes = document.images, document.annotations
        if ids is not None:
            kept = set(ids)
            images = [entry for entry in images if entry["id"] in kept]
            boxes = [entry for entry in boxes if entry["image_id"] in kept]
        lists = {"images": images, "categories": document.categories, "annotations": boxes}
        return json.dumps({**document.extra, **lists})

    @property
    def name(self) -> str:
        """The file that was read."""
        return str(self._ann)

    @property
    def classes(self) -> dict[str, int]:
        """Category ids by name, in the order of the file."""
        return {entry["name"]: entry["id"] for entry in self._document.categories}

    def rename_class(self, name: str, new: str) -> None:
        """Have a class bear another name."""
        for entry in self._document.categories:
            if entry["name"] == name and name != new:
                self._set(entry, "name", new)

    def take_classes(self, classes: Mapping[str, int], source: str) -> None:
        """Have some classes in place of one's own, which are among them.

        Args:
            classes: Category ids by name, in the order that the file is to have.
            source: The file whose classes they are.
        """
        own = self.classes
        if list(own.items()) == list(classes.items()):
            return
        added = ", ".join(show(name) for name in classes if name not in own)
        line = f"categories: {show(list(own))} -> {show(list(classes))}, with the ids that {source} has"
        self.lines.append(line + f"; added: {added}" * bool(added))
        entries = {entry["name"]: entry for entry in self._document.categories}
        ids = {number: classes[name] for name, number in own.items()}
        self._document.categories = [
            {**entries.get(name, {}), "id": number, "name": name} for name, number in classes.items()
        ]
        for entry in self._document.annotations:
            entry["category_id"] = ids[entry["category_id"]]

    def split(self, share: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids of the training and of the validation images; arguments as :func:`split_off`."""
        classes: dict[int, set[int]] = {entry["id"]: set() for entry in self._document.images}
        for entry in self._document.annotations:
            classes[entry["image_id"]].add(entry["category_id"])
        return split_off(classes, share, seed, image_classes=classes)

    def _set(self, entry: Entry, key: str, new: object) -> None:
        old = show(entry[key]) if key in entry else "missing"
        self.lines.append(f"{self._place(entry)}.{key}: {old} -> {show(new)}")
        entry[key] = new

    def _place(self, entry: Entry) -> str:
        number = entry.get("id")
        return self._places[id(entry)] + (f" (id {number})" if type(number) is int else "")

    def _read_texts(self) -> None:
        """Take numbers that are written as text."""
        whole = {
            "images": ("id", "width", "height"),
            "categories": ("id",),
            "annotations": ("id", "image_id", "category_id", "iscrowd", "ignore"),
        }
        for name, keys in whole.items():
            for entry in getattr(self._document, name):
                for key in keys:
                    value = entry.get(key)
                    if type(value) is str and _INTEGER.fullmatch(value):
                        self._set(entry, key, int(float(value)))
        for entry in self._document.annotations:
            box: Any = entry.get("bbox")
            if type(box) is list and any(type(value) is str for value in box):
                self._set(entry, "bbox", [_number(value) for value in box])

    def _compute_areas(self) -> None:
        """Take width times height where there is an area that is none, and 0 where ``iscrowd`` says nothing."""
        for entry in self._document.annotations:
            box: Any = entry.get("bbox")
            area: Any = entry.get("area")
            sound = type(box) is list and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) > 0
            if "area" in entry and sound and not (is_number(area) and area > 0):
                self._set(entry, "area", box[2] * box[3])
            if "iscrowd" in entry and entry["iscrowd"] is None:
                self._set(entry, "iscrowd", 0)

    def _find_file(self, entry: Entry) -> None:
        """Take the path that a Windows path, or one out of the folder, means."""
        name = entry.get("file_name")
        if type(name) is not str or (stays_inside(name) and (self._folder.holds(name) or "\\" not in name)):
            return
        found = self._folder.meant_by(name)
        if found is not None:
            self._set(entry, "file_name", found)

    def _settle_sizes(self) -> None:
        """Take the sizes that images have; note what training could not read, and whose boxes could be of two sizes."""
        sizes: dict[int, tuple[int, int]] = {}
        for entry in self._document.images:
            name = entry.get("file_name")
            if type(name) is not str or not stays_inside(name) or not self._folder.holds(name):
                continue
            size = decoded_size(self._folder.path / name)
            problem = size if isinstance(size, str) else thin_problem(size, self._input_size)
            if problem is not None:
                self._broken[id(entry)] = f"{name!r} {problem}"
            if not isinstance(size, str):
                sizes[id(entry)] = size
        changes, unclear = other_sizes(self._document, sizes)
        for entry, key, new in changes:
            self._set(entry, key, new)
        self._broken = unclear | self._broken

    def _leave_out_defects(self) -> None:
        """Leave out what would be refused, until nothing would be.

        Raises:
            InputError: If it is no single image or box, or nothing would be left.
        """
        while defects := self._defects():
            ids = Counter(show(entry.get("id")) for entry in self._document.images)
            gone: dict[str, set[int]] = {"images": set(), "annotations": set()}
            lost: set[int] = set()
            for defect in defects:
                place = _PLACE.match(defect.key or "")
                if place is None or place[1] == "categories":
                    raise InputError(f"{defect.problem}: --fix cannot mend it", source=self._ann, key=defect.key)
                entry = getattr(self._document, place[1])[int(place[2])]
                number = entry.get("id")
                if place[1] == "images" and ids[show(number)] > 1:
                    raise InputError(f"{defect.problem}: --fix cannot mend it", source=self._ann, key=defect.key)
                if id(entry) not in gone[place[1]]:
                    gone[place[1]].add(id(entry))
                    self._note_left_out(entry, defect.problem.removesuffix(f" (named by {self._key})"))
                    if place[1] == "images" and type(number) is int:
                        lost.add(number)
            for entry in self._document.annotations:
                if entry.get("image_id") in lost and id(entry) not in gone["annotations"]:
                    gone["annotations"].add(id(entry))
                    self._note_left_out(entry, "its image is left out")
            for name, entries in gone.items():
                kept = [entry for entry in getattr(self._document, name) if id(entry) not in entries]
                if not kept:
                    problem = f"none would be left: {defects[0].problem}: --fix cannot mend it"
                    raise InputError(problem, source=self._ann, key=name)
                setattr(self._document, name, kept)

    def _note_left_out(self, entry: Entry, problem: str) -> None:
        self.lines.append(f"{self._place(entry)}: left out: {problem}")

    def _defects(self) -> list[InputError]:
        """Return what the checks would refuse; ids of boxes are no matter, since they can be had anew."""
        defects: list[InputError] = []
        source = DocumentSource(self._ann, self._key, defects)
        numbered = [{**entry, "id": number} for number, entry in enumerate(self._document.annotations, start=1)]
        trial = CocoDocument(
            images=[dict(entry) for entry in self._document.images],
            categories=self._document.categories,
            annotations=numbered,
        )
        check_document(source, trial, self._folder.path)
        for index, entry in enumerate(self._document.images):
            problem = self._broken.get(id(entry))
            if problem is not None:
                defects.append(InputError(problem, source=self._ann, key=f"images[{index}]"))
        return defects

    def _number_annotations(self) -> None:
        """Number the boxes from 1 where their ids are no unique positive integers."""
        ids = [entry.get("id") for entry in self._document.annotations]
        if all(map(_fits, ids)) and len(set(ids)) == len(ids):
            return
        for number, entry in enumerate(self._document.annotations, start=1):
            if entry.get("id") != number or type(entry.get("id")) is not int:
                self._set(entry, "id", number)


def _fits(number: object) -> bool:
    """Whether COCO's evaluation takes a value for the id of a box."""
    return isinstance(number, int) and type(number) is int and 0 < number <= LARGEST_ID


def _number(value: object) -> object:
    """Return a number that is written as text, or the value as it is."""
    if type(value) is not str or not _NUMBER.fullmatch(value):
        return value
    kind: Callable[[str], float] = int if value.strip().lstrip("+-").isdecimal() else float
    return kind(value)
