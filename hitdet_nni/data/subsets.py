"""Pictures of one or several annotation files, chosen by lists of ids, as one annotation file.

COCO 2014's trainval35k is the example: two annotation files and two folders, less the pictures of a third file. mmdet
and pycocotools take one file, so that one is written, under a name that holds a digest of all that it is made of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hitdet_nni.data.coco import check_same_classes, read_annotations
from hitdet_nni.errors import InputError
from hitdet_nni.files import locked, read_text, write_text

_IDS = "picture ids, a line each, a JSON list, or a COCO annotation file"


def one_annotation_file(
    sources: Sequence[tuple[Path, Path]], folder: Path, *, half: str, only: Path | None, without: Path | None
) -> tuple[Path, Path]:
    """Write the chosen pictures of some annotation files, and their boxes, as one file; do nothing where it is there.

    Args:
        sources: Annotation files, each with its folder of pictures.
        folder: Where the file is written.
        half: ``"train"`` or ``"val"``, whose keys of the ``data`` section messages name.
        only: File of the picture ids to take, by default all.
        without: File of the picture ids to leave out.

    Returns:
        The annotation file, and the folder that its file names are relative to.

    Raises:
        InputError: If a file has a defect, the files have different classes, two share an id, or the lists of ids name
            unknown pictures or leave none.
    """
    key = f"data.{half}_ann"
    lists = [path for path in (only, without) if path is not None]
    folders = [images.resolve() for _, images in sources]  # pictures behind a link that leads out of root are refused
    root = Path(os.path.commonpath(folders))
    prefixes = [images.relative_to(root).as_posix() for images in folders]
    digest = hashlib.sha256(json.dumps([prefixes, only is None, without is None]).encode())
    for path in [*(ann for ann, _ in sources), *lists]:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", source=path, key=key) from None
    merged = folder / f"annotations-{digest.hexdigest()[:24]}.json"
    with locked(merged.with_suffix(".lock")):
        if not merged.exists():
            _check(sources, key)
            parts = [json.loads(ann.read_bytes()) for ann, _ in sources]
            whole = _together(parts, prefixes, [ann for ann, _ in sources], key)
            chosen = _chosen(
                {entry["id"] for entry in whole["images"]},
                None if only is None else (only, read_ids(only, key=f"data.{half}_ids")),
                None if without is None else (without, read_ids(without, key=f"data.{half}_without")),
                half,
            )
            whole["images"] = [entry for entry in whole["images"] if entry["id"] in chosen]
            whole["annotations"] = [entry for entry in whole["annotations"] if entry["image_id"] in chosen]
            write_text(merged, json.dumps(whole))
    return merged, root


def read_ids(path: Path, *, key: str) -> frozenset[int]:
    """The picture ids in a file: one a line, a JSON list, or those of a COCO annotation file.

    Args:
        path: The file.
        key: Dotted configuration key that named it, for messages.

    Raises:
        InputError: If it cannot be read, holds no ids or one of them twice.
    """
    text = read_text(path)
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


def _check(sources: Sequence[tuple[Path, Path]], key: str) -> None:
    """Check every file by itself, so that defects are named where they are."""
    first, *others = (read_annotations(ann, images, key=key, allow_empty_boxes=True) for ann, images in sources)
    for other in others:
        check_same_classes(first, other)


def _together(
    parts: Sequence[dict[str, Any]], prefixes: Sequence[str], files: Sequence[Path], key: str
) -> dict[str, list[dict[str, Any]]]:
    """The contents of checked files as one, file names relative to their common folder."""
    whole: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": parts[0]["categories"]}
    for name in ("images", "annotations"):
        owners: dict[int, Path] = {}
        for part, prefix, file in zip(parts, prefixes, files, strict=True):
            for entry in part[name]:
                owner = owners.setdefault(entry["id"], file)
                if owner is not file:
                    raise InputError(
                        f"id {entry['id']} of {name} is also in {owner}", source=file, key=key, allowed="unique ids"
                    )
                named = {"file_name": f"{prefix}/{entry['file_name']}"} if name == "images" and prefix != "." else {}
                whole[name].append({**entry, **named})
    return whole


def _chosen(
    known: set[int],
    only: tuple[Path, frozenset[int]] | None,
    without: tuple[Path, frozenset[int]] | None,
    half: str,
) -> set[int]:
    """Ids of the pictures that are left."""
    chosen = known
    if only is not None:
        path, ids = only
        unknown = sorted(ids - known)
        if unknown:
            problem = f"{len(unknown)} ids are in no annotation file, the first of them {unknown[0]}"
            raise InputError(problem, source=path, key=f"data.{half}_ids", allowed=f"ids of data.{half}_ann")
        chosen = set(ids)
    if without is not None:
        path, ids = without
        if not ids & known:
            problem = f"none of its {len(ids)} ids is in an annotation file"
            raise InputError(problem, source=path, key=f"data.{half}_without", allowed=f"ids of data.{half}_ann")
        chosen = chosen - ids
        if not chosen:
            raise InputError("leaves no picture", source=path, key=f"data.{half}_without", allowed="fewer ids")
    return chosen
