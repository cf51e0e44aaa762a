"""What NNI and our trials tell each other in."""

from __future__ import annotations

ENDED = frozenset({"SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED"})
"""Statuses of a trial that NNI does not run again when it resumes an experiment."""

STAGES = {1: "screening", 2: "search"}
"""What the number stands for that a trial reports as ``stage``: intermediate results are numbers."""


def stage_number(stage: str) -> int:
    """Return the number of a stage.

    Raises:
        KeyError: If the stage has none.
    """
    return {name: number for number, name in STAGES.items()}[stage]
