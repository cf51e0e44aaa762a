"""Images of one or several annotation files, chosen by lists of ids, as one annotation file.

COCO 2014's trainval35k is the example: two annotation files and two folders, less the images of a third file. mmdet
and pycocotools take one file, so that one is written, under a name that holds a digest of all that it is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hitdet_nni.data.annotations.coco import check_same_classes, read_annotations
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.annotations.coco_document import CocoDocument, Entry, canonical_text, decode
from hitdet_nni.errors import InputError
from hitdet_nni.io import locked, write_text

_FORMAT = 3  # of the files; to be raised when the same parts are to become another file
_IDS = "image ids, a line each, a JSON list, or a COCO annotation file"


def one_annotation_file(
    sources: Sequence[tuple[Path, Path]], folder: Path, *, split: str, only: Path | None, without: Path | None
) -> tuple[Path, Path]:
    """Write the chosen images of some annotation files, and their boxes, as one file; do nothing where it is there.

    Args:
        sources: Annotation files, each with its folder of images.
        folder: Where the file is written.
        split: ``"train"`` or ``"val"``, whose keys of the ``data`` section messages name.
        only: File of the image ids to take, by default all.
        without: File of the image ids to leave out.

    Returns:
        The annotation file, and the folder that its file names are relative to.

    Raises:
        InputError: If a file has a defect, the files have different classes, or the lists of ids name unknown images,
            such as share their id with others, or leave none.
    """
    key = f"data.{split}_ann"
    lists = [path for path in (only, without) if path is not None]
    folders = [images.resolve() for _, images in sources]  # images behind a link that leads out of root are refused
    root = Path(os.path.commonpath(folders))
    prefixes = [images.relative_to(root).as_posix() for images in folders]
    names = [str(ann) for ann, _ in sources]
    digest = hashlib.sha256(json.dumps([_FORMAT, prefixes, names, only is None, without is None]).encode())
    for path in [*(ann for ann, _ in sources), *lists]:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", source=path, key=key) from None
    merged = folder / f"annotations-{digest.hexdigest()[:24]}.json"
    with locked(merged.with_suffix(".lock")):
        if not merged.exists():
            checked = _check(sources, key)
            whole = _together(checked, prefixes)
            chosen = _chosen(
                whole.ids,
                None if only is None else (only, read_ids(only, key=f"data.{split}_ids")),
                None if without is None else (without, read_ids(without, key=f"data.{split}_without")),
                split,
            )
            write_text(merged, canonical_text(whole.document(chosen, [str(each.source) for each in checked])))
    return merged, root


def read_ids(path: Path, *, key: str) -> frozenset[int]:
    """Return the image ids in a file: one a line, a JSON list, or those of a COCO annotation file.

    Args:
        path: The file.
        key: Dotted configuration key that named it, for messages.

    Raises:
        InputError: If it cannot be read, holds no ids or one of them twice.
    """
    try:
        text, _ = decode(path.read_bytes())
    except UnicodeDecodeError:
        raise InputError("is no text in UTF-8, UTF-16 or UTF-32", source=path, key=key, allowed=_IDS) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=path, key=key, allowed=_IDS) from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not JSON, or cut off: {error}", source=path, key=key, allowed=_IDS) from None
        if isinstance(content, dict):
            images = content.get("images")
            entries = images if isinstance(images, list) else []
            content = [entry.get("id") if isinstance(entry, dict) else entry for entry in entries]
        places = [(f"entry {index}", value) for index, value in enumerate(content)]
    else:
        lines = [line.strip() for line in text.splitlines()]
        # ASCII digits only: int() would also take underscores and other scripts' digits.
        numbers = [int(line) if line.isascii() and line.isdecimal() and len(line) < 20 else line for line in lines]
        places = [(f"line {number}", value) for number, value in enumerate(numbers, start=1) if value != ""]
    ids: set[int] = set()
    for place, value in places:
        if type(value) is not int:
            raise InputError(f"{place} is {value!r:.60}", source=path, key=key, allowed=_IDS)
        if value in ids:
            raise InputError(f"{place}: id {value} comes twice", source=path, key=key, allowed="unique ids")
        ids.add(value)
    if not ids:
        raise InputError("holds no ids", source=path, key=key, allowed=_IDS)
    return frozenset(ids)


def _check(sources: Sequence[tuple[Path, Path]], key: str) -> list[CocoAnnotations]:
    """Check every file by itself, so that defects are named where they are."""
    first, *others = (read_annotations(ann, images, key=key, allow_empty_boxes=True) for ann, images in sources)
    for other in others:
        check_same_classes(first, other)
    return [first, *others]


@dataclass(frozen=True)
class _Whole:
    """Several files together.

    Attributes:
        images: Entries of the images, with ids of the whole.
        annotations: Entries of the boxes, with ids of the whole.
        categories: Entries of the classes.
        ids: By each id of a file, the ids of the whole that it became: several where files share it.
        notes: What was read otherwise than it stands in the files.
    """

    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    ids: Mapping[int, list[int]]
    notes: tuple[str, ...]

    def document(self, chosen: set[int], parts: Sequence[str]) -> CocoDocument:
        """Return the chosen images and their boxes."""
        return CocoDocument(
            images=[entry for entry in self.images if entry["id"] in chosen],
            annotations=[entry for entry in self.annotations if entry["image_id"] in chosen],
            categories=self.categories,
            parts=tuple(parts),
            notes=self.notes,
        )


def _together(checked: Sequence[CocoAnnotations], prefixes: Sequence[str]) -> _Whole:
    """Put checked files together, file names relative to their common folder; ids that they share become others."""
    parts = [json.loads(annotations.ann.read_bytes()) for annotations in checked]  # as they have been checked
    notes = [note for annotations in checked for note in annotations.notes]
    new: dict[str, list[dict[int, int]]] = {}
    for name in ("images", "annotations"):
        lists = [[entry["id"] for entry in part[name]] for part in parts]
        count = sum(map(len, lists))
        shared = count - len({number for ids in lists for number in ids})
        numbers = iter(range(1, count + 1))
        new[name] = [{number: next(numbers) if shared else number for number in ids} for ids in lists]
        if shared:
            files = ", ".join(str(annotations.source) for annotations in checked)
            notes.append(f"{files}: {shared} ids of {name} are in several files: all are renumbered from 1")
    whole = _Whole([], [], parts[0]["categories"], {}, tuple(notes))
    ids: dict[int, list[int]] = {}
    for part, prefix, images, boxes in zip(parts, prefixes, new["images"], new["annotations"], strict=True):
        for entry in part["images"]:
            ids.setdefault(entry["id"], []).append(images[entry["id"]])
            name = entry["file_name"] if prefix == "." else f"{prefix}/{entry['file_name']}"
            whole.images.append({**entry, "id": images[entry["id"]], "file_name": name})
        for entry in part["annotations"]:
            changed = {"id": boxes[entry["id"]], "image_id": images[entry["image_id"]]}
            whole.annotations.append({**entry, **changed})
    return replace(whole, ids=ids)


def _chosen(
    known: Mapping[int, list[int]],
    only: tuple[Path, frozenset[int]] | None,
    without: tuple[Path, frozenset[int]] | None,
    split: str,
) -> set[int]:
    """Return the ids, in the whole, of the images that are left; ``known`` gives them by the ids of the files."""
    chosen = {number for numbers in known.values() for number in numbers}
    if only is not None:
        path, ids = only
        unknown = sorted(ids - known.keys())
        if unknown:
            problem = f"{len(unknown)} ids are in no annotation file, the first of them {unknown[0]}"
            raise InputError(problem, source=path, key=f"data.{split}_ids", allowed=f"ids of data.{split}_ann")
        _refuse_ambiguous(known, ids, path, split, "ids")
        chosen = {known[number][0] for number in ids}
    if without is not None:
        path, ids = without
        if not ids & known.keys():
            problem = f"none of its {len(ids)} ids is in an annotation file"
            raise InputError(problem, source=path, key=f"data.{split}_without", allowed=f"ids of data.{split}_ann")
        _refuse_ambiguous(known, ids, path, split, "without")
        chosen -= {number for each in ids for number in known.get(each, ())}
        if not chosen:
            raise InputError("leaves no image", source=path, key=f"data.{split}_without", allowed="fewer ids")
    return chosen


def _refuse_ambiguous(known: Mapping[int, list[int]], ids: frozenset[int], path: Path, split: str, kind: str) -> None:
    several = sorted(number for number in ids if len(known.get(number, ())) > 1)
    if several:
        problem = f"id {several[0]} is that of several images, since files of data.{split}_ann share ids"
        raise InputError(problem, source=path, key=f"data.{split}_{kind}", allowed="ids of one image each")
