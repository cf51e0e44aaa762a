"""COCO's average precisions: their keys, what they are called, how they are printed."""

from __future__ import annotations

from collections.abc import Mapping

AVERAGE_PRECISIONS: Mapping[str, str] = {
    "mAP": "AP",
    "mAP_50": "AP50",
    "mAP_75": "AP75",
    "mAP_s": "APs",
    "mAP_m": "APm",
    "mAP_l": "APl",
}
"""What each key of ``metrics.json`` is called."""


def percent(precision: float | None) -> str:
    """An average precision in [0, 1] as COCO's tables print it; a dash where no box has the size, or none is given."""
    return "–" if precision is None or precision < 0 else f"{100 * precision:.1f}"
