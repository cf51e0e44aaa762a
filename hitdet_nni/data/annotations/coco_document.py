"""COCO documents as text: decoded, parsed, and written as mmdet and pycocotools are to read them.

mmdet and pycocotools open an annotation file by themselves, in the encoding of the locale. Where a file is not what
they would read, the document as it was checked is written into the cache, and they are given that file.
"""

from __future__ import annotations

import hashlib
import json
import locale
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hitdet_nni.errors import InputError
from hitdet_nni.io import locked, write_text

Entry = dict[str, Any]

LISTS: Final = ("images", "categories", "annotations")
"""The lists of a document."""

FIX: Final = "`hitdet-nni check-data --fix OUT`"
"""The command that writes what can be mended, for messages."""

MOST: Final = 1e9
"""Pixels; a coordinate beyond it, infinity and NaN included, is no coordinate."""

ROUNDING: Final = 0.015
"""Pixels; COCO rounds coordinates to hundredths, so that edges may seem to lie outside."""

READ_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
"""The keys that are written, of each list; no other one is read, but for ``ignore`` of a box."""

_MADE = "hitdet_nni"  # key of what a file that was put together says of its parts
_FORMAT = 1  # of the files in the cache; to be raised when the same input is to become another file

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100
show = _brief.repr
"""A value as messages show it: cut short, and with whatever cannot be printed escaped."""


@dataclass(frozen=True)
class DocumentSource:
    """Where values come from, for error messages, and the defects that are to be passed over, if any are.

    Attributes:
        ann: The annotation file.
        key: Dotted configuration key that names it.
        defects: Takes defects of single entries; ``None``: they are raised.
        images_passed_over: Ids of the images that were refused and passed over.
        categories_passed_over: Ids of the categories that were.
    """

    ann: Path
    key: str
    defects: list[InputError] | None = None
    images_passed_over: set[int] = field(default_factory=set)
    categories_passed_over: set[int] = field(default_factory=set)

    def refuse(self, defect: InputError) -> None:
        """Refuse a single entry of a list: raise its defect, or note it where entries are to be passed over."""
        if self.defects is None:
            raise defect
        self.defects.append(defect)

    def error(self, place: str | None, problem: str, allowed: str) -> InputError:
        """Return the error of a value at a place of the file, such as ``"images[3].width"``."""
        return InputError(f"{problem} (named by {self.key})", source=self.ann, key=place, allowed=allowed)

    def of_type(self, place: str, holder: Mapping[str, Any], name: str, kind: type, allowed: str) -> Any:
        """Return the value of a key, which must be of exactly one type (so that true is no number).

        Raises:
            InputError: If it is missing or of another type.
        """
        if name not in holder:
            raise self.error(f"{place}.{name}" if place else name, "is missing", allowed)
        value = holder[name]
        if type(value) is not kind:
            if kind is int and type(value) is str and value.strip().isdecimal():
                allowed += f", as {FIX} writes it"
            elif kind is int and name == "id" and place.startswith("images") and type(value) is str:
                allowed += f", as {FIX} numbers them"
            raise self.error(f"{place}.{name}" if place else name, f"is {show(value)}", allowed)
        return value


@dataclass
class CocoDocument:
    """A parsed annotation file; its lists may be changed.

    Attributes:
        images: Entries of that list.
        categories: Entries of that list.
        annotations: Entries of that list.
        digest: SHA-256 of the file.
        encoding: How the file has to be read where mmdet and pycocotools would not read it so; otherwise ``None``.
        parts: The files that it was put together from, or the folder of label files that it was made of.
        notes: What was read otherwise in those.
        extra: What else stands in the file, by its key.
    """

    images: list[Entry]
    categories: list[Entry]
    annotations: list[Entry]
    digest: str = ""
    encoding: str | None = None
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Entry = field(default_factory=dict)


def read_document(source: DocumentSource, needed: Sequence[str] = LISTS) -> CocoDocument:
    """Read a file in whatever Unicode encoding JSON may have.

    Nothing is known of the entries of its lists then, but that they are objects.

    Args:
        source: The file.
        needed: The lists that are read; the others, which COCO leaves out of the files of its test images, are empty.

    Raises:
        InputError: If it cannot be read, is not JSON, or lacks a list that is needed.
    """
    try:
        content = source.ann.read_bytes()
    except OSError as error:
        raise source.error(None, f"cannot be read: {error.strerror}", "a COCO annotation file (JSON)") from error
    data, encoding = _parse(source, content)
    if type(data) is not dict:
        raise source.error(None, f"the top level is {show(data)}", "an object with images, annotations and categories")
    lists: dict[str, list[Entry]] = {name: _entries(source, data, name) if name in needed else [] for name in LISTS}
    made = data.get(_MADE)
    made = made if isinstance(made, dict) else {}
    parts, notes = (tuple(map(str, made.get(name) or ())) for name in ("parts", "notes"))
    extra = {key: value for key, value in data.items() if key not in (*LISTS, _MADE)}
    digest = hashlib.sha256(content).hexdigest()
    return CocoDocument(**lists, digest=digest, encoding=encoding, parts=parts, notes=notes, extra=extra)


def is_number(value: object) -> bool:
    """Whether a value is a finite number that may be a coordinate."""
    return (type(value) is float or type(value) is int) and -MOST < value < MOST


def canonical_text(document: CocoDocument) -> str:
    """Return the document with the keys that are read, as JSON in ASCII, which is the same in every encoding."""
    data: Entry = {
        name: [{key: entry[key] for key in READ_KEYS[name] if key in entry} for entry in getattr(document, name)]
        for name in LISTS
    }
    if document.parts:
        data |= made_of(document.parts, document.notes)
    return json.dumps(data)


def made_of(parts: Sequence[str], notes: Sequence[str] = ()) -> Entry:
    """Return the key of a document that says what it was made of.

    Args:
        parts: The annotation files, or the folder of label files.
        notes: What was read otherwise in those.
    """
    return {_MADE: {"parts": parts, "notes": notes}}


def write_canonical(document: CocoDocument, folder: Path, changed: Sequence[object]) -> Path:
    """Write the document under a name that follows from its content; do nothing where it is there.

    Args:
        document: What is written.
        folder: Where.
        changed: What, besides the file that was read, the content follows from.

    Returns:
        The file.

    Raises:
        WriteError: If it cannot be written.
    """
    made_of = json.dumps([_FORMAT, document.digest, *map(str, changed)])
    path = folder / f"annotations-{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.json"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            write_text(path, canonical_text(document))
    return path


def cache_folder() -> Path:
    """Return the folder in which embedded sets and annotation files are kept: ``hitdet-nni`` in ``$XDG_CACHE_HOME``.

    By default that is ``~/.cache``.

    Raises:
        InputError: If it cannot be made or written.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hitdet-nni"
    reason = "no permission to write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
    if not os.access(folder, os.W_OK):
        problem = f"the folder of data that are read once cannot be written ({reason})"
        raise InputError(problem, source=folder, allowed="a home that can be written, or another XDG_CACHE_HOME")
    return folder


def decode(content: bytes) -> tuple[str, str]:
    """Return the text in any Unicode encoding that JSON may have, without a byte order mark, and the encoding.

    Raises:
        UnicodeDecodeError: If it is in another one.
    """
    encoding = json.detect_encoding(content)
    return content.decode(encoding, "surrogatepass").removeprefix("\ufeff"), encoding


def _parse(source: DocumentSource, content: bytes) -> tuple[Any, str | None]:
    """Return what the file says, and its encoding where pycocotools would stumble over it."""
    try:
        text, encoding = decode(content)
        data = json.loads(text)
    except UnicodeDecodeError as error:
        problem = f"is not JSON: the byte at {error.start} is no {error.encoding.upper()}"
        raise source.error(None, problem, "JSON in UTF-8, UTF-16 or UTF-32") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        problem = f"is not JSON, or cut off: {error.msg}"
        raise source.error(place, problem, "a complete COCO annotation file (JSON)") from error
    except (ValueError, RecursionError) as error:
        raise source.error(None, f"is not JSON: {error}", "a COCO annotation file (JSON)") from error
    return data, _other_encoding(content, encoding)


def _other_encoding(content: bytes, encoding: str) -> str | None:
    if encoding != "utf-8":
        return "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else encoding.upper()
    if content.isascii():
        return None
    try:
        content.decode()
    except UnicodeDecodeError:
        return "UTF-8 with surrogates"
    return None if locale.getpreferredencoding(False).lower().replace("-", "") == "utf8" else "UTF-8"


def _entries(source: DocumentSource, data: Mapping[str, Any], name: str) -> list[Entry]:
    allowed = "a list of at least one object"
    entries: list[Any] = source.of_type("", data, name, list, allowed)
    if not entries:
        raise source.error(name, "is empty", allowed)
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            raise source.error(f"{name}[{index}]", f"is {show(entry)}", "an object")
    return entries
