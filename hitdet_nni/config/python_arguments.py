"""The arguments of the Python interface: of which kind each is, and messages of the commands in their words."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

import yaml

from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.validation import require_kind
from hitdet_nni.errors import InputError

StrPath = str | os.PathLike[str]

_PATH = (str, os.PathLike), "a path"
_COUNT = (Integral,), "a whole number"

_BUDGET = 'GFLOPs as a number, {"gflops": 2}, {"params_m": 3}, {"latency_ms": 5, "table": "latency.json"}'

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("source", "out", "path", "table", "sub_spaces"), _PATH),
    **dict.fromkeys(("samples", "images", "top", "calibration"), _COUNT),
    "preset": ((str, os.PathLike), "a shipped config's name, or a config file"),
    "settings": ((Mapping,), 'dotted keys and their values, e.g. {"search.epochs": 20}'),
    "budgets": ((Sequence,), "a list of numbers"),
    "kind": ((str,), "a format's name"),
}
"""The types of arguments by their names, and these in words."""

_ARGUMENTS = {
    "force": "force=True",
    "resume": "resume=True",
    "format": "kind",
    "out": "path",
    "budget": "budgets",
    "set": "settings",
}
"""What options of the commands are called in Python where an argument of that name does not say it."""


_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s;,'"])+"""
_SETTINGS = re.compile(f"--set {_WORD}(?: --set {_WORD})*")
"""One option of a command after the other that sets something."""


def check_kinds(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, object]) -> None:
    """Refuse arguments of another kind than that of their names; what is the default is right.

    Args:
        parameters: Those of the function.
        given: What it is called with.

    Raises:
        InputError: Naming the first such argument.
    """
    for name, value in given.items():
        if name in _KINDS and value is not parameters[name].default:
            require_kind(name, value, *_KINDS[name])


def in_arguments(text: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return a message of a command with a function's arguments in place of the command's options.

    Args:
        text: The message.
        parameters: Those of the function.
    """

    def argument(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        said = _ARGUMENTS.get(name, name)
        return next((word for word in (said, name) if word.partition("=")[0] in parameters), option[0])

    values = re.sub(_SETTINGS, lambda found: f"settings={{{_pairs(found[0])}}}", text)
    return re.sub(r"(?<![^\s(])--([a-z][a-z-]*)", argument, values)


def _pairs(options: str) -> str:
    """Return what ``--set`` options set as the pairs of a dictionary."""
    given = (word.partition("=") for word in shlex.split(options) if word != "--set")
    return ", ".join(f'"{key}": {_literal(value)}' for key, _, value in given)


def _literal(value: str) -> str:
    """Return a value of YAML as Python has it; X, which stands for any, as it is."""
    try:
        return value if value == "X" else repr(yaml.safe_load(value))
    except yaml.YAMLError:
        return repr(value)


def search_settings(
    preset: StrPath,
    source: StrPath | None,
    budget: Mapping[str, object] | float | None,
    seed: int | None,
    settings: Mapping[str, object] | None,
) -> Settings:
    """Return the settings of a search.

    Args:
        preset: A shipped config's name, or a config file.
        source: ``data.root``, if it is given.
        budget: ``search.budget``, or its GFLOPs, if it is bounded.
        seed: ``seed``, if it is given.
        settings: Other dotted keys and their values.

    Raises:
        InputError: If one of them is bad, or the table of latencies is missing.
    """
    changed: dict[str, object] = dict(settings or {})
    if source is not None:
        changed["data.root"] = os.fspath(source)
    if budget is not None:
        require_kind("budget", budget, (Real, Mapping), _BUDGET)
        section = budget if isinstance(budget, Mapping) else {"gflops": float(budget)}
        for key, value in section.items():
            changed[f"search.budget.{key}"] = os.fspath(value) if isinstance(value, os.PathLike) else value
    if seed is not None:
        changed["seed"] = seed
    try:
        loaded = load_settings(os.fspath(preset), changed)
    except InputError as error:
        before, found, key = (error.key or "").partition("search.budget")
        if budget is None or before or not found or error.source != "--set":
            raise
        raise InputError(error.problem, source="budget", key=key[1:], allowed=error.allowed) from None
    bounds = loaded.search.budget
    if bounds is not None and bounds.table is not None:
        require_table(bounds.table, "search.budget.table")
    return loaded


def require_table(file: Path, key: str) -> Path:
    """Return the file of a table of latencies.

    Raises:
        InputError: If it is missing.
    """
    if not file.is_file():
        raise InputError("no such file", source=file, key=key, allowed="a table that hitdet-nni latency has written")
    return file
