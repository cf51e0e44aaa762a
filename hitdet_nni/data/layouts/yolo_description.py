"""What a YOLO set's ``data.yaml`` says: the classes, key points, and where its parts lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hitdet_nni.data.annotations.class_names import NAME, is_one_line
from hitdet_nni.data.layouts.parts import Role, entries, role_of, shown
from hitdet_nni.errors import InputError
from hitdet_nni.io import expanded, is_there, read_yaml


def description(root: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """Return the YAML file of a folder that names the classes, its content, and others that do as well.

    Raises:
        InputError: If ``data.yaml`` or ``dataset.yaml`` is no YAML.
    """
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


def classes_of(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that a description has: a list, or names by number.

    Raises:
        InputError: If it has none, or they are no names.
    """
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
    check_names(file, "names", classes)
    count = content.get("nc")
    if count is not None and count != len(classes):
        raise InputError(
            f"is {count!r:.60}, names has {len(classes)}", source=file, key="nc", allowed="the same number"
        )
    return tuple(classes)


def check_names(file: Path, key: str | None, classes: list[str]) -> None:
    """Check the names of classes that a file has under a key, if it has keys.

    Raises:
        InputError: If there is none, or one is empty, no line of text or there twice.
    """
    if not classes:
        raise InputError("names no class", source=file, key=key, allowed="a name a line")
    for number, name in enumerate(classes):
        if not name or name in classes[:number]:
            problem = f"name {number} is {name!r:.60}" + (", as another one is" if name else "")
            raise InputError(problem, source=file, key=key, allowed="names, each once")
        if not is_one_line(name):
            raise InputError(f"name {number} is {name!r:.60}", source=file, key=key, allowed=NAME)


def key_points_of(file: Path, content: Mapping[str, Any]) -> int | None:
    """Return how many numbers of key points a row has behind its box; ``None``: no key points.

    Raises:
        InputError: If ``kpt_shape`` is no pair of numbers.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(each) is int and each > 0 for each in shape):
        raise InputError(f"is {shape!r:.60}", source=file, key="kpt_shape", allowed="two numbers")
    return int(shape[0] * shape[1])


def place_of(root: Path, file: Path, content: Mapping[str, Any], key: str, value: str) -> tuple[Path, str | None]:
    """Return where a folder or list that the description names lies, and a line where that is not where it says.

    Roboflow writes ``../train/images`` for what lies beside the file, and paths are often those of another machine.

    Args:
        root: The folder of the set.
        file: The description.
        content: What it holds.
        key: The key of the part.
        value: What the key says.

    Raises:
        InputError: If there is no such thing.
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
    if is_there(named_by_file):
        return plain_path(named_by_file), None
    place = file.parent / value
    if base is not None and is_there(place):
        note = f"has path {base!r}, where there is no {written!r} ({key}): that in {root} is taken"
        return plain_path(place), f"{shown(file, root)} {note}"
    found = next((tail for tail in tails(value, role_of(key)) if is_there(file.parent / tail)), None)
    if found is not None:
        place = file.parent / found
        return place, f"{shown(file, root)} names {written!r} for {key}: {shown(place, root)} is taken"
    allowed = f"a folder or list in {root}"
    if role_of(key) == "val":
        allowed += f", or no {key}: a part of the training images is split off then"
    raise InputError(f"{value!r:.100} does not exist", source=file, key=key, allowed=allowed)


def tails(path: str, role: Role | None = None) -> Iterator[PurePosixPath]:
    """Yield what a path of another place or machine may be called here: its last parts, the most of them first.

    Args:
        path: The path, with ``/`` between its parts.
        role: The part that it is of; where one of its folders is called so, that remains.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "//", "..")]
    of_role = [index for index, part in enumerate(parts) if role is not None and role_of(part) == role]
    for first in range((max(of_role) if of_role else len(parts) - 1) + 1):
        yield PurePosixPath(*parts[first:])


def plain_path(path: Path) -> Path:
    """Return the path without ``.`` and, where no link is in between, ``..``."""
    return path.resolve() if ".." in path.parts else path
