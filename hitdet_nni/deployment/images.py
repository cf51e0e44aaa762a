"""From an image to what a detector takes, and its boxes back to the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hitdet_nni.data.images.reading import resized
from hitdet_nni.operators.costs import Size

Pixels = NDArray[np.uint8]
Found = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Boxes ``[D, 4]`` as left, top, right, bottom in pixels, scores ``[D]`` and labels ``[D]``."""


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


def detect(run: Callable[[Pixels], Found], image: Pixels, input_size: Size) -> Found:
    """Find objects in an image.

    Args:
        run: A detector of resized images ``[1, 3, H', W']``.
        image: ``[H, W, 3]``, blue, green, red.
        input_size: Height and width that the detector was trained for.

    Returns:
        Boxes ``[D, 4]`` in pixels of the image, scores ``[D]`` and labels ``[D]``.
    """
    fitting = fit_image(image, input_size)
    boxes, scores, labels = run(fitting)
    scale = np.array([image.shape[1] / fitting.shape[3], image.shape[0] / fitting.shape[2]] * 2, dtype=np.float32)
    return boxes * scale, scores, labels
