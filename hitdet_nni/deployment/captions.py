"""Where the captions of boxes stand: inside the image, at their boxes, and not over each other where there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Area = Sequence[float]
"""Left, top, right and bottom."""


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
