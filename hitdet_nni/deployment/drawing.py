"""Boxes and their captions drawn into an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hitdet_nni.deployment.images import Pixels
from hitdet_nni.errors import InputError

COLOURS = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (188, 189, 34),
    (23, 190, 207),
    (127, 127, 127),
)
"""Red, green and blue of each class, in turn (those of matplotlib's tab10)."""

_LUMA = (0.299, 0.587, 0.114)
_BRIGHT = 150
"""Luma, of 255, from which on black letters are read better than white ones."""


def draw_boxes(image: Pixels, boxes: NDArray[Any], labels: NDArray[Any], captions: Sequence[str]) -> Pixels:
    """Draw boxes into a copy of an image, the first on top, with lines and letters as large as its size asks for.

    Args:
        image: ``[H, W, 3]``, blue, green, red.
        boxes: ``[D, 4]``: left, top, right and bottom in its pixels.
        labels: ``[D]``: the class decides on the colour.
        captions: What stands at each box.

    Returns:
        The copy, ``[H, W, 3]``.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    line = max(1, round(sum(canvas.size) / 700))
    pen, font = ImageDraw.Draw(canvas), _font(9 + 3 * line)
    for box, label, caption in reversed(list(zip(boxes.tolist(), labels.tolist(), captions, strict=True))):
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=line)
        _write(pen, caption, box, colour, font, canvas.size)
    return np.ascontiguousarray(np.asarray(canvas)[..., ::-1])


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Write a text above a box, or inside where the image has no room above, on a ground of the box's colour."""
    width, tall = pen.textlength(text, font) + 2, sum(font.getmetrics())
    left = max(0, min(box[0], size[0] - width))
    top = box[1] - tall if box[1] >= tall else box[1]
    pen.rectangle((left, top, left + width, top + tall), fill=colour)
    bright = np.dot(colour, _LUMA) > _BRIGHT
    pen.text((left + 1, top), text, fill="black" if bright else "white", font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, which has the letters of many languages."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def encoded(image: Pixels, path: Path) -> bytes:
    """Return an image as a file's content.

    Args:
        image: ``[H, W, 3]``, blue, green, red.
        path: The ending of its name decides on the format.

    Raises:
        InputError: If OpenCV writes no such format.
    """
    try:
        done, content = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise InputError("is no name of an image", source=path, allowed="one that ends in .jpg, .png, .webp, ...")
    return bytes(content)
