"""Whether a run is of the settings that a command has, and what is said where it is not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hitdet_nni.config.data_settings import PATH_KEYS
from hitdet_nni.config.settings import STAGES, Settings
from hitdet_nni.errors import InputError

LENGTHS = (
    "screening.epochs",
    "screening.warmup_epochs",
    "search.epochs",
    "search.warmup_epochs",
    "retrain.epochs",
    "retrain.milestones",
    "retrain.val_interval",
    "pretrain.epochs",
)
"""Settings that make a run longer or shorter."""

IMAGES = tuple(f"{stage}.epochs_images" for stage in STAGES)
"""Settings that in a run are its number of training images, where they are given."""


def plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain numbers, strings, lists and dicts."""
    return settings.model_dump(mode="json")


def essential(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain settings without those that no result depends on: who is sent the curves."""
    return {key: value for key, value in tree.items() if key != "logger"}


def same_run(earlier: object, now: Mapping[str, Any]) -> bool:
    """Whether the content of a run's config says what plain settings say, whoever is sent the curves.

    A data set, or a table of latencies, may have been moved: whether it is the same is asked by what goes on with it.
    """
    return isinstance(earlier, Mapping) and _relocated(essential(earlier), now) == essential(now)


def _relocated(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return plain settings with the paths of others in place of those of data and tables that are there no more."""
    search, search_now = earlier.get("search"), now.get("search")
    if isinstance(search, Mapping) and isinstance(search_now, Mapping):
        search = {**search, "budget": _paths_of(search.get("budget"), search_now.get("budget"), ["table"])}
    return {**earlier, "data": _paths_of(earlier.get("data"), now.get("data"), PATH_KEYS), "search": search}


def _paths_of(before: object, after: object, keys: Iterable[str]) -> object:
    """Return a section with the paths of another one in place of those that are there no more."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return before
    moved = {
        key: after.get(key)
        for key in keys
        if after.get(key) is not None and before.get(key) is not None and not _is_there(before[key])
    }
    return {**before, **moved}


def _is_there(paths: object) -> bool:
    return all(Path(str(path)).exists() for path in (paths if isinstance(paths, list) else [paths]))


def other_settings(config: Path, earlier: object, now: Mapping[str, Any], sub_spaces: Path) -> InputError:
    """Return an error that says which settings differ, and what to do about it.

    Args:
        config: The config of the run that is there.
        earlier: Its content.
        now: The plain settings of the command.
        sub_spaces: The run's sub search spaces, if it has come so far.
    """
    if not isinstance(earlier, dict):
        return InputError("the run there has other settings", source=config, allowed="another --out, or --force")
    differences = list(_differences(_relocated(essential(earlier), now), essential(now)))
    key, before, after = differences[0]
    only_lengths = all(name in (*LENGTHS, *IMAGES) for name, *_ in differences)
    for name, count, count_now in differences:
        if only_lengths and name in IMAGES and None not in (count, count_now):
            problem = f"the run there has {count} training images and epochs for so many, here are {count_now}"
            return InputError(problem, source=config, allowed="the same images, another --out, or --force")
    problem = f"the run there has other settings: {key} is {_as_argument(before)} there and {_as_argument(after)} here"
    problem += f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    if only_lengths:
        problem += "; a run cannot be made longer or shorter, since its schedules are laid out for all its epochs"
    back = " ".join(f"--set {shlex.quote(f'{name}={_as_argument(value)}')}" for name, value, _ in differences[:4])
    back += " ..." if len(differences) > 4 else ""
    allowed = f"{back} to resume it as it is, another --out for a new run, or --force to begin again there"
    if all(name.startswith("search.") for name, *_ in differences) and sub_spaces.is_file():
        allowed += f"; a new search with --sub-spaces {sub_spaces} need not screen again"
    return InputError(problem, source=config, allowed=allowed)


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Return the dotted keys whose values differ, with both; lengths of stages last, as the others are the graver."""
    found = list(_changed(earlier, now, ""))
    yield from sorted(found, key=lambda difference: difference[0] in (*LENGTHS, *IMAGES))


def _changed(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for key in {**earlier, **now}:
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(before, after, f"{prefix}{key}.")
        elif before != after or (key in earlier) != (key in now):
            yield f"{prefix}{key}", before, after


def _as_argument(value: object) -> str:
    """Return a setting as ``--set`` takes it."""
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)
