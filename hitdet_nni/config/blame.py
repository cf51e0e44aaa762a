"""Whose a bad setting is: the config file's, an override's, or that of both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hitdet_nni.errors import InputError


def blamed(
    error: InputError,
    path: Path,
    tree: Mapping[str, Any],
    diff: Mapping[str, Any],
    called: str,
    check_alone: Callable[[], None],
) -> InputError:
    """Return an error of settings that names where they are from.

    Args:
        error: The error, which names the file.
        path: The file.
        tree: Its content, with all that it extends.
        diff: The overrides.
        called: What they are called.
        check_alone: Raises the error of the file without them, if it has any.
    """
    if _is_of_diff(error.key, tree, diff):
        return InputError(error.problem, source=called, key=error.key, allowed=error.allowed)
    changed = [key for key in _dotted_keys(diff) if error.key is None or key.startswith(f"{error.key}.")]
    named = [key for key in changed if key.rpartition(".")[2] in error.problem]
    try:
        check_alone()
    except InputError as alone:
        if (alone.key, alone.problem) == (error.key, error.problem):
            return error
    if not changed:
        return error
    source = f"{path}, {', '.join(named or changed)} by {called}"  # what the file has may be right by itself
    return InputError(error.problem, source=source, key=error.key, allowed=error.allowed)


def _is_of_diff(key: str | None, tree: object, diff: object) -> bool:
    """Check whether what is wrong at a dotted key is a diff's, rather than the config's or between the two."""
    for part in key.split(".") if key is not None else ():
        if not isinstance(diff, Mapping) or part not in diff:
            return False
        tree, diff = tree.get(part) if isinstance(tree, Mapping) else None, diff[part]
        if not (isinstance(tree, Mapping) and isinstance(diff, Mapping)):
            return True
    return False


def _dotted_keys(diff: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of a diff that have values."""
    found: list[str] = []
    for key, value in diff.items():
        below = isinstance(value, Mapping) and bool(value)
        found += _dotted_keys(value, f"{prefix}{key}.") if below else [f"{prefix}{key}"]
    return found
