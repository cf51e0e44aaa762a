"""From an image to what a detector takes, and its boxes back to the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from hitdet_nni.data.images.reading import resized
from hitdet_nni.operators.costs import Size

Pixels = NDArray[np.uint8]
Found = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Boxes ``[D, 4]`` as left, top, right, bottom in pixels, scores ``[D]`` and labels ``[D]``."""


TOGETHER = 8
"""Images that are run together at most: more of them take more memory, and no less time."""


def fit_image(image: Pixels, input_size: Size) -> Pixels:
    """Resize an image as training does.

    Args:
        image: ``[H, W, 3]``, blue, green, red.
        input_size: Height and width that it is to fit, its ratio kept.

    Returns:
        ``[1, 3, H', W']``, red, green, blue.
    """
    height, width = image.shape[:2]
    fitting = cv2.resize(image, resized((width, height), input_size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(fitting[..., ::-1].transpose(2, 0, 1)[None])


class Predictor(Protocol):
    """A trained detector, whatever it runs by."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""

    @property
    def input_size(self) -> Size:
        """Height and width that images are resized to fit."""

    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']``, red, green, blue, to what is found in each, boxes in their pixels."""


def detect(detector: Predictor, images: Sequence[Pixels]) -> list[Found]:
    """Find objects in images; those that are resized to the same size are run together, some at a time.

    Args:
        detector: The detector.
        images: Each ``[H, W, 3]``, blue, green, red.

    Returns:
        For each image boxes ``[D, 4]`` in its pixels, scores ``[D]`` and labels ``[D]``.
    """
    fitting = [fit_image(image, detector.input_size) for image in images]
    found: dict[int, Found] = {}
    for shape in dict.fromkeys(each.shape for each in fitting):
        places = [place for place, each in enumerate(fitting) if each.shape == shape]
        for start in range(0, len(places), TOGETHER):
            chosen = places[start : start + TOGETHER]
            outputs = detector.run(np.concatenate([fitting[place] for place in chosen]))
            found.update(zip(chosen, outputs, strict=True))
    return [_in_pixels_of(image, fitting[place].shape, found[place]) for place, image in enumerate(images)]


def _in_pixels_of(image: Pixels, fitted: tuple[int, ...], found: Found) -> Found:
    boxes, scores, labels = found
    scale = np.array([image.shape[1] / fitted[3], image.shape[0] / fitted[2]] * 2, dtype=np.float32)
    return boxes * scale, scores, labels
