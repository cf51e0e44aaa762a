"""What counts epochs beside a stage's ``epochs`` goes along where a config changes these alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def along_with_epochs(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the milestones and the warm-up of a stage that follow epochs which were given without them.

    Milestones stay at the shares of the training at which they were given. A warm-up keeps its length, and leaves one
    epoch at the least. Values that are none are left to be refused.

    Args:
        layers: What the stage has by default, and then what each config says of it, each a diff of those before.

    Returns:
        What is to take the place of ``milestones`` and ``warmup_epochs``; nothing where these go with the epochs.
    """
    given = {key: number for number, layer in enumerate(layers) for key in layer}  # the last layer of each key
    epochs: Any = layers[given["epochs"]]["epochs"]
    found: dict[str, Any] = {}
    if not _counts(epochs):
        return found
    if "milestones" in given and given["epochs"] > given["milestones"]:
        steps: Any = layers[given["milestones"]]["milestones"]
        before: Any = [layer["epochs"] for layer in layers[: given["milestones"] + 1] if "epochs" in layer][-1]
        if _counts(before) and isinstance(steps, list | tuple) and all(map(_counts, steps)):
            # The nearest whole epoch, computed in integers.
            found["milestones"] = sorted({max(1, (2 * step * epochs + before) // (2 * before)) for step in steps})
    if "warmup_epochs" in given and given["epochs"] > given["warmup_epochs"]:
        warmup: Any = layers[given["warmup_epochs"]]["warmup_epochs"]
        if _counts(warmup):
            found["warmup_epochs"] = min(warmup, epochs - 1)
    return found


def _counts(value: object) -> bool:
    return type(value) is int and value > 0
