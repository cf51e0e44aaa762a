"""YOLO's label files: a row an object, numbers relative to the width and height of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.data.annotations.box_forms import box_around
from hitdet_nni.data.layouts.parts import Box, Labelled, Notes, Size
from hitdet_nni.errors import InputError

_BEYOND = 0.01  # by which numbers may lie outside 0 to 1, as Ultralytics allows
_ROW = "class, centre and size of a box, or class and corners of a polygon, as shares of the image's width and height"
DIGITS = 2
"""Decimals of a pixel that a box is rounded to: what COCO's files have, so that the same boxes are the same numbers."""

POLYGONS = "{polygon is taken as the box around it|polygons are taken as the boxes around them}"
KEY_POINTS = "{row has key points: its box is taken|rows have key points: their boxes are taken}"


@dataclass(frozen=True)
class YoloReader:
    """Reads YOLO's label files.

    Attributes:
        classes: Number of classes.
        key_points: How many numbers of key points a row has behind its box; ``None``: rows have none, and such of six
            numbers and more are polygons, rotated boxes among them.
    """

    classes: int
    key_points: int | None = None

    @property
    def settings(self) -> object:
        """What the boxes depend on."""
        return [self.classes, self.key_points, DIGITS]

    def read(self, item: Labelled, size: Size, notes: Notes) -> tuple[tuple[int, int], list[Box]]:
        """Return the image's size and its boxes.

        Args:
            item: The image and its label file.
            size: Gives the image's own size.
            notes: Takes polygons.

        Raises:
            InputError: Naming file and line of what is no row of labels.
        """
        width, height = size()
        boxes = []
        for number, line in enumerate(_lines(item.labels), start=1):
            words = line.split()
            if not words:
                continue
            label, left, top, right, bottom = self._row(item.labels, number, words, notes)
            x, wide = _pixels(left, right, width)
            y, high = _pixels(top, bottom, height)
            boxes.append(Box(label, (x, y, wide, high)))
        return (width, height), boxes

    def _row(
        self, file: Path | None, line: int, words: list[str], notes: Notes
    ) -> tuple[int, float, float, float, float]:
        """Return the class, left, top, right and bottom of a row, relative to the image."""
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        where = f"{file} line {line}"
        if not numbers or not all(map(math.isfinite, numbers)):
            raise self._error(file, line, words, "is")
        label, coordinates = int(numbers[0]), numbers[1:]
        if label != numbers[0] or not 0 <= label < self.classes:
            allowed = f"a class of 0 to {self.classes - 1}"
            raise InputError(f"class is {words[0]}", source=file, key=f"line {line}", allowed=allowed)
        count = len(coordinates)
        if self.key_points is not None and count == 4 + self.key_points:
            notes.add(KEY_POINTS, where)
            coordinates = coordinates[:4]
        elif count == 5:
            raise self._error(file, line, words, "has a number too many, which may be a detection's confidence:")
        elif count != 4 and (count < 6 or count % 2):
            raise self._error(file, line, words, f"has {len(words)} numbers:")
        if not all(-_BEYOND <= each <= 1 + _BEYOND for each in coordinates):
            raise self._error(file, line, words, "is not relative to the image:")
        if len(coordinates) > 4:
            notes.add(POLYGONS, where)
            left, top, right, bottom = box_around(coordinates)
        else:
            x, y, width, height = coordinates
            if width < 0 or height < 0:
                raise self._error(file, line, words, "has a negative size:")
            left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if not all((start < 1 and end > 0) or 0 <= start == end <= 1 for start, end in ((left, right), (top, bottom))):
            raise self._error(file, line, words, "lies outside of the image:")
        return label, left, top, right, bottom

    @staticmethod
    def _error(file: Path | None, line: int, words: list[str], problem: str) -> InputError:
        return InputError(f"{problem} {' '.join(words)!r:.80}", source=file, key=f"line {line}", allowed=_ROW)


def _pixels(start: float, end: float, side: int) -> tuple[float, float]:
    """Return where a box begins and how long it is, in pixels; what is rounded out of the image stays at its edge."""
    begin, length, least = round(start * side, DIGITS), round((end - start) * side, DIGITS), 10**-DIGITS
    if begin >= side:
        begin = round(side - max(length, least), DIGITS)
    if end > 0 and begin + length <= 0:
        length = round(least - begin, DIGITS)
    return begin, length


def _lines(file: Path | None) -> list[str]:
    """Return the rows of a label file; none where there is no file."""
    if file is None:
        return []
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError("is no text", source=file, allowed=_ROW) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=file) from None
