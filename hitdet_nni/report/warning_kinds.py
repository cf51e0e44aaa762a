"""Warnings of several stages by kind: what each kind says is said once, with where it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hitdet_nni.config.skeleton import COMPONENTS

_EPOCH: Final = re.compile(r"epoch \d+: ")
_COMPONENT: Final = re.compile(rf"(all components|{'|'.join(COMPONENTS)}): ")
_NUMBER: Final = re.compile(r"(?<![\w.+-])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")


@dataclass(frozen=True)
class WarningKind:
    """One kind of warning.

    Attributes:
        text: What it says; a number that differs between the places is the range of its values.
        places: Stage, epoch and component of each warning.
    """

    text: str
    places: tuple[str, ...]


def warning_kinds(warnings: Iterable[tuple[str, str]]) -> tuple[WarningKind, ...]:
    """Group warnings that differ in nothing but the place and their numbers.

    Args:
        warnings: Stage and text of each.

    Returns:
        The kinds, in the order in which they are met first.
    """
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for stage, warning in warnings:
        place, text = _parted(stage, warning)
        found.setdefault(tuple(_NUMBER.split(text)), []).append((place, text))
    return tuple(
        WarningKind(_merged(words, [text for _, text in each]), tuple(dict.fromkeys(place for place, _ in each)))
        for words, each in found.items()
    )


def _parted(stage: str, warning: str) -> tuple[str, str]:
    """Return where a warning holds, and what it says there."""
    place, text = stage, warning.removeprefix(f"{stage}: ").removeprefix(f"{stage}, ")
    if epoch := _EPOCH.match(text):
        place, text = f"{place}, {epoch[0][:-2]}", text[epoch.end() :]
    if component := _COMPONENT.match(text):
        text = text[component.end() :]
        if component[1] in COMPONENTS and component[1] not in stage.split():
            place = f"{place}, {component[1]}"
    return place, text


def _merged(words: tuple[str, ...], texts: list[str]) -> str:
    """Return the words that texts have in common, with their numbers between."""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    numbers = [_range(column) for column in columns]
    return "".join(part for pair in zip(words, [*numbers, ""], strict=True) for part in pair)


def _range(values: tuple[str, ...]) -> str:
    least, most = min(values, key=float), max(values, key=float)
    return least if float(least) == float(most) else f"{least} to {most}"
