"""What counts epochs beside a stage's ``epochs`` goes along where a config changes these alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def follow_epochs(below: dict[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Have a stage's milestones and warm-up follow the epochs that a diff gives without them.

    Milestones stay at their shares of the training. A warm-up keeps its length, and leaves one epoch at the least.
    Values that are none are left to be refused.

    Args:
        below: The stage of the config that the diff is of; changed in place.
        given: The diff of the stage, which has ``epochs``.
        defaults: What the stage has where ``below`` says nothing.
    """
    own = {**defaults, **below}
    epochs: Any = given["epochs"]
    before, milestones, warmup = own["epochs"], own.get("milestones"), own.get("warmup_epochs")
    if not (_counts(epochs) and _counts(before)) or epochs == before:
        return
    steps = isinstance(milestones, list | tuple) and all(map(_counts, milestones))
    if milestones and steps and "milestones" not in given:
        below["milestones"] = sorted({max(1, round(each * epochs / before)) for each in milestones})
    if "warmup_epochs" not in given and _counts(warmup):
        below["warmup_epochs"] = min(warmup, epochs - 1)


def _counts(value: object) -> bool:
    return type(value) is int and value > 0
