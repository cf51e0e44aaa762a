"""COCO's average precisions: their keys, what they are called, how they are printed."""

from __future__ import annotations

from collections.abc import Mapping

from hitdet_nni.runs.result import PRECISIONS

AVERAGE_PRECISIONS: Mapping[str, str] = dict(
    zip(PRECISIONS, ("AP", "AP50", "AP75", "APs", "APm", "APl"), strict=True),
)
"""What each key of ``metrics.json`` is called."""


def percent(precision: float | None) -> str:
    """Write an average precision in [0, 1] as COCO's tables do; a dash where no box has the size, or none is given."""
    return "–" if precision is None or precision < 0 else f"{100 * precision:.1f}"
