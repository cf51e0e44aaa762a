"""What an image goes through before the stem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hitdet_nni.config.skeleton import SIDE_DIVISOR

PREPROCESSING: Mapping[str, Any] = {
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "bgr_to_rgb": True,
    "pad_size_divisor": SIDE_DIVISOR,
}
"""Arguments of mmdet's ``DetDataPreprocessor``: ImageNet's mean and deviation, red, green, blue, of pixels 0 to 255."""
