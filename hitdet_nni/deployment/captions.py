"""Captions of boxes: no wider than the image, inside it, and not over each other where there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Area = Sequence[float]
"""Left, top, right and bottom."""

_LAST = 5
"""Letters at the end of a caption that are kept: a score, such as `` 0.87``."""


def shortened(text: str, width: float, measure: Callable[[str], float]) -> str:
    """Return a text with an ellipsis before its last letters in place of those that a width has no room for.

    Args:
        text: Class name, and perhaps a score; left whole where not even one letter and its end have room.
        width: How wide it may be.
        measure: Gives the width of a text.
    """
    if measure(text) <= width:
        return text
    cut = (f"{text[:count].rstrip()}…{text[-_LAST:]}" for count in range(len(text) - _LAST - 1, 0, -1))
    return next((each for each in cut if measure(each) <= width), text)


def place_captions(
    boxes: Sequence[Area], sizes: Sequence[tuple[float, float]], image_size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return the left and the top of each box's caption.

    The captions choose in order: above the box, below, inside or beside it, the first place that no
    earlier caption has, or the one where they overlap least.

    Args:
        boxes: The boxes, those whose captions matter most first.
        sizes: Width and height of each caption.
        image_size: Width and height of the image.
    """
    taken: list[Area] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        areas = [
            (left, top, left + width, top + height)
            for left, top in (
                (_inside(left, width, image_size[0]), _inside(top, height, image_size[1]))
                for left, top in _candidates(box, width, height)
            )
        ]
        taken.append(min(areas, key=lambda area: sum(_overlap(area, other) for other in taken)))
    return [(area[0], area[1]) for area in taken]


def _candidates(box: Area, width: float, height: float) -> Iterator[tuple[float, float]]:
    left, top, right, bottom = box
    for place in (top - height, bottom, top, bottom - height):
        yield left, place
        yield right - width, place
    for place in (top, bottom - height):
        yield right, place
        yield left - width, place
    for place in (top - 2 * height, bottom + height):
        yield left, place
        yield right - width, place


def _inside(start: float, length: float, end: float) -> float:
    return max(0.0, min(start, end - length))


def _overlap(one: Area, other: Area) -> float:
    width, height = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return max(0.0, width) * max(0.0, height)
