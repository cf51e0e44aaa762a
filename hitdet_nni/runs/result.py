"""``metrics.json``: what a retraining ended with, and what the detector costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeFloat, NonNegativeInt

from hitdet_nni.config.validation import validated
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json

PRECISIONS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
"""mmdet's names of COCO's average precisions, in the order of COCO's evaluation."""


class Result(BaseModel):
    """The content of the file; of some baselines the cost cannot be counted."""

    model_config = ConfigDict(frozen=True)

    baseline: str | None = None
    params_m: NonNegativeFloat | None = None
    gflops: NonNegativeFloat | None = None
    proposals: NonNegativeInt | None = None
    shape: tuple[int, int] | None = None
    metrics: dict[str, FiniteFloat]
    metrics_before_training: dict[str, FiniteFloat] = {}


def result_content(
    kind: Literal["architecture", "baseline"],
    name: str,
    cost: Mapping[str, Any],
    metrics: Mapping[str, float],
    before: Mapping[str, float],
    weights: Path,
) -> dict[str, Any]:
    """Return what the file is to hold.

    Args:
        kind: What was trained.
        name: Its name.
        cost: ``params_m``, ``gflops``, ``shape`` and, of a baseline, ``proposals``.
        metrics: Average precisions in [0, 1] by :data:`PRECISIONS`; -1 where no box has the size.
        before: Those before training.
        weights: File of the trained weights, relative to the run directory.
    """
    return {
        kind: name,
        "mAP": metrics["mAP"],
        **cost,
        "metrics": metrics,
        "metrics_before_training": before,
        "weights": str(weights),
    }


def read_result(path: Path) -> Result:
    """Read ``metrics.json``.

    Raises:
        InputError: If it cannot be read, or is not what a retraining ends with.
    """
    result = validated(Result, path, read_json(path))
    if "mAP" not in result.metrics:
        raise InputError("missing", source=path, key="metrics.mAP")
    return result
