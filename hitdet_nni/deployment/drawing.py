"""Boxes and their captions drawn into an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hitdet_nni.data.annotations.class_names import in_one_line
from hitdet_nni.data.images.quiet import quiet
from hitdet_nni.deployment.captions import place_captions, shortened
from hitdet_nni.deployment.fonts import caption_font, drawable
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

    Captions stand in front of all boxes, on a ground of their box's colour.

    Args:
        image: ``[H, W, 3]``, blue, green, red.
        boxes: ``[D, 4]``: left, top, right and bottom in its pixels.
        labels: ``[D]``: the class decides on the colour.
        captions: What stands at each box, in one line and shortened to the width of the image; words whose letters
            no font has give way to the number of the class.

    Returns:
        The copy, ``[H, W, 3]``.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    line = max(1, round(sum(canvas.size) / 700))
    pen, letters = ImageDraw.Draw(canvas), 9 + 3 * line
    texts = [drawable(in_one_line(each), label) for each, label in zip(captions, labels.tolist(), strict=True)]
    fonts = [caption_font(letters, text) for text in texts]
    texts = [shortened(text, canvas.width - 2, font.getlength) for text, font in zip(texts, fonts, strict=True)]
    sizes = [(font.getlength(text) + 2, sum(font.getmetrics())) for text, font in zip(texts, fonts, strict=True)]
    positions = place_captions(boxes.tolist(), sizes, canvas.size)
    colours = [class_colour(label) for label in labels.tolist()]
    for box, colour in reversed(list(zip(boxes.tolist(), colours, strict=True))):
        pen.rectangle(box, outline=colour, width=line)
    written = zip(texts, fonts, colours, positions, sizes, strict=True)
    for text, font, colour, (left, top), (width, tall) in reversed(list(written)):
        pen.rectangle((left, top, left + width, top + tall), fill=colour)
        pen.text((left + 1, top), text, fill="black" if is_bright(colour) else "white", font=font)
    return np.ascontiguousarray(np.asarray(canvas)[..., ::-1])


def class_colour(label: int) -> tuple[int, int, int]:
    """Return red, green and blue of a class's boxes and of the ground of their captions."""
    return COLOURS[label % len(COLOURS)]


def is_bright(colour: tuple[int, int, int]) -> bool:
    """Whether black letters are read better on a colour than white ones."""
    return bool(np.dot(colour, _LUMA) > _BRIGHT)


def encoded(image: Pixels, path: Path) -> bytes:
    """Return an image as a file's content.

    Args:
        image: ``[H, W, 3]``, blue, green, red.
        path: The ending of its name decides on the format.

    Raises:
        InputError: If OpenCV writes no such format, or none of that size.
    """
    try:
        with quiet():
            done, content = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done and cv2.haveImageWriter(path.name):
        problem = f"{image.shape[1]} x {image.shape[0]} pixels are too many for its format"
        raise InputError(problem, source=path, allowed="one that ends in .png")
    if not done:
        raise InputError("is no name of an image", source=path, allowed="one that ends in .jpg, .png, .webp, ...")
    return bytes(content)
