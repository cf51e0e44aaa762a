"""Fonts of captions: the one that comes with matplotlib, or one of the system that has the letters which it lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

logger = logging.getLogger(__name__)

SYSTEM_FONTS: Final = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "meiryo.ttc", "malgun.ttf"),
)
"""Files of usual fonts with many letters, of Linux, macOS and Windows."""


def caption_font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Return the first font that has all letters of a text, or matplotlib's where none has.

    Args:
        size: Its size in pixels.
        text: What is to be written.
    """
    return _opened(_file_for(text) or _own(), size)


def drawable(caption: str, number: int) -> str:
    """Return a caption that there is a font for: the number in place of words that matplotlib's lacks letters of.

    Args:
        caption: Class name, and perhaps a score.
        number: Number of the class.
    """
    if _file_for(caption) is not None:
        return caption
    _say_letters_are_missing()
    return " ".join([str(number), *(word for word in caption.split() if _letters(_own()).issuperset(map(ord, word)))])


def is_drawable(text: str) -> bool:
    """Whether a font here has all letters of a text."""
    return _file_for(text) is not None


@cache
def _say_letters_are_missing() -> None:
    problem = "no font here has the letters of some class names: their numbers, from 0, are drawn instead"
    logger.warning("%s; a font such as Noto Sans CJK has them", problem)


@cache
def _file_for(text: str) -> str | None:
    """Return the file of the first font that has all letters of a text."""
    wanted = set(map(ord, text))
    return next((file for file in _files() if wanted <= _letters(file)), None)


def _own() -> str:
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _files() -> Iterator[str]:
    yield _own()
    for name in SYSTEM_FONTS:
        file = _installed(name)
        if file is not None:
            yield file


@cache
def _installed(name: str) -> str | None:
    """Return the path of a font of the system; Pillow knows where each system has its fonts."""
    with suppress(OSError):
        return str(ImageFont.truetype(name).path)
    return None


@cache
def _letters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())


@cache
def _opened(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
