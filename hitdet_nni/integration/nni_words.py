"""What NNI and our trials tell each other in."""

from __future__ import annotations

from collections.abc import Mapping

ENDED = frozenset({"SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"})
"""Statuses of a trial that NNI does not run again when it resumes an experiment."""

SCREENING, SEARCH = 1, 2
"""The ``stage`` of an intermediate result, which is a number as all of it."""

STAGES = {SCREENING: "screening", SEARCH: "search"}
"""What they stand for."""


def final_report(result: Mapping[str, float]) -> dict[str, float]:
    """Return a trial's final result for NNI, whose ``default`` is the mAP, by the content of ``metrics.json``."""
    return {"default": result["mAP"], **{key: result[key] for key in ("mAP", "params_m", "gflops")}}
