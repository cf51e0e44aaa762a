"""The settings of a run, and in what they differ from the shipped config behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from hitdet_nni.config.settings import Settings, find_config, load_settings
from hitdet_nni.config.shipped import shipped
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_yaml
from hitdet_nni.runs.same_settings import plain


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: Dotted key.
        value: Its value as YAML writes it.
        shipped: The shipped config's value, if it is another one.
    """

    key: str
    value: str
    shipped: str | None


@dataclass(frozen=True)
class ConfigView:
    """All settings.

    Attributes:
        base: Name of the shipped config that they are compared with, if it is known.
        settings: All of them in order.
    """

    base: str | None
    settings: tuple[Setting, ...]

    @property
    def changed(self) -> tuple[Setting, ...]:
        """Those that differ from the shipped config."""
        return tuple(setting for setting in self.settings if setting.shipped is not None)


def config_view(settings: Settings, command: Sequence[str]) -> ConfigView:
    """Lay the settings of a run beside those of the shipped config that its command named or its config extends.

    Args:
        settings: The run's settings.
        command: Program and arguments that made the run.
    """
    base = shipped_base(command)
    others = None if base is None else plain(load_settings(base))
    rows = []
    for key, value in _flat(plain(settings)):
        other = value if others is None else _shipped_value(others, key, settings)
        rows.append(Setting(key, _text(value), _text(other) if value != other else None))
    return ConfigView(base, tuple(rows))


def _shipped_value(shipped: Mapping[str, Any], key: str, settings: Settings) -> object:
    """Return the shipped config's value of a key; of a key in a section that it leaves out, the key's default."""
    tree: object = shipped
    section: object = settings
    *sections, name = key.split(".")
    for each in sections:
        section = section.get(each) if isinstance(section, Mapping) else getattr(section, each, None)
        tree = tree.get(each) if isinstance(tree, Mapping) else None
    if isinstance(tree, Mapping):
        return tree.get(name)
    field = type(section).model_fields.get(name) if isinstance(section, BaseModel) else None
    if field is None or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def shipped_base(command: Sequence[str]) -> str | None:
    """Name of the shipped config behind a command's ``--config``; ``None`` where that cannot be told any more."""
    names = [argument for before, argument in pairwise(command) if before == "--config"]
    names += [argument.removeprefix("--config=") for argument in command if argument.startswith("--config=")]
    try:
        return _shipped_below(names[-1]) if names else None
    except InputError:  # the user's file has gone or changed since: there is nothing to compare with
        return None


def _shipped_below(config: str, depth: int = 20) -> str | None:
    path = find_config(config)
    if path == shipped_path(path.stem):
        return path.stem
    tree = read_yaml(path)
    below = tree.get("extends") if isinstance(tree, Mapping) else None
    if not isinstance(below, str) or not depth:
        return None
    beside = path.parent / below
    return _shipped_below(str(beside if beside.is_file() else below), depth - 1)


def shipped_path(name: str) -> Path | None:
    """Return the shipped config of a name, if there is one."""
    try:
        return shipped("experiments", f"configs/{name}.yml")
    except InputError:
        return None


def flat_settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the dotted key of every setting, and its value as YAML writes it."""
    for key, value in _flat(plain(settings)):
        yield key, _text(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("...").strip()
