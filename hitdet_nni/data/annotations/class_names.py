"""Which text may be a class name: one line, so that every table, caption and file can hold it."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

NAME: Final = "a class name of one line, without control characters"
"""What is allowed, for messages."""

_KINDS: Final = ("Cc", "Zl", "Zp")  # control characters, separators of lines and of paragraphs


def is_one_line(name: str) -> bool:
    """Whether a name has no line break, tab or other control character in it."""
    return not any(unicodedata.category(letter) in _KINDS for letter in name)


def in_one_line(text: str) -> str:
    """Return a text with a space in place of each run of control characters, and none of them at its ends."""
    words = "".join("\n" if unicodedata.category(letter) in _KINDS else letter for letter in text).split("\n")
    return " ".join(word for word in (word.strip() for word in words) if word)


def folded(name: str) -> str:
    """Return a name as it is compared with others that may be meant for the same: without case and outer spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of names that differ in case, spaces or Unicode form alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[folded(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
