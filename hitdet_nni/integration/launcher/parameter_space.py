"""The parameters that NNI's tuner chooses, checked before NNI starts, which would wait for ever at a bad one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from hitdet_nni.errors import InputError
from hitdet_nni.io import expanded

LENGTHS = {
    "choice": None,
    "randint": 2,
    "uniform": 2,
    "loguniform": 2,
    "normal": 2,
    "lognormal": 2,
    "quniform": 3,
    "qloguniform": 3,
    "qnormal": 3,
    "qlognormal": 3,
}
"""NNI 3.0's kinds of parameter, and how many numbers each has; ``None`` for any number of values of any kind."""


def check_parameters(space: object, source: str) -> None:
    """Refuse parameters that a tuner of NNI's would fail at.

    Args:
        space: The content of ``searchSpace``, or of the file that ``searchSpaceFile`` names.
        source: What errors name.

    Raises:
        InputError: If it is no mapping, or a parameter lacks its kind or its values.
    """
    if not isinstance(space, Mapping):
        allowed = "parameters, each with _type and _value"
        raise InputError(f"holds a {type(space).__name__}", source=source, key="searchSpace", allowed=allowed)
    for name, given in space.items():
        kind, values = (given.get("_type"), given.get("_value")) if isinstance(given, Mapping) else (None, None)
        if not isinstance(kind, str) or kind not in LENGTHS:
            problem = "is missing" if kind is None else f"got {kind!r}"
            raise InputError(problem, source=source, key=f"searchSpace.{name}._type", allowed=LENGTHS)
        count = LENGTHS[kind]
        if isinstance(values, list) and (_are_numbers(values, count) if count else values):
            continue
        problem = "is missing" if values is None else f"got {values!r}"
        allowed = f"a list of {count} numbers, as 0.0001 or 1.0e-4" if count else "a list of one value or more"
        raise InputError(problem, source=source, key=f"searchSpace.{name}._value", allowed=allowed)


def _are_numbers(values: list[object], count: int) -> bool:
    """Whether there are so many numbers; YAML takes 1e-4, without a point, for a text."""
    return len(values) == count and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def check_parameter_file(path: str, folder: Path) -> None:
    """Refuse a file of parameters as :func:`check_parameters` does; what cannot be read is left to NNI to refuse.

    Args:
        path: ``searchSpaceFile``.
        folder: Where relative paths start.

    Raises:
        InputError: If a parameter lacks its kind or its values.
    """
    file = folder / expanded(path)
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return
    check_parameters(content, str(file))
