"""How long the stages are for a number of training images."""

from __future__ import annotations

import math
from typing import TypeVar

from hitdet_nni.config.data_settings import Section
from hitdet_nni.config.settings import STAGES, Settings

Stage = TypeVar("Stage", bound=Section)


def for_images(settings: Settings, images: int) -> Settings:
    """Return settings whose stages are as long as that many training images ask for.

    A stage with ``epochs_images`` has its epochs multiplied by the square root of ``epochs_images / images``: four
    times the images are half the epochs and twice the steps. What counts epochs beside them (``warmup_epochs``,
    ``milestones``, ``val_interval``) goes along. The result names ``images`` in place of ``epochs_images``, so that
    it is the same for the same images ever after.

    Args:
        settings: All settings; those without ``epochs_images`` are returned as they are.
        images: Training images, at least 1.
    """
    return settings.model_copy(update={name: _stretched(getattr(settings, name), images) for name in STAGES})


def _stretched(stage: Stage, images: int) -> Stage:
    """Return a stage's settings for that many images."""
    meant = getattr(stage, "epochs_images", None)
    if meant is None:
        return stage
    factor = math.sqrt(meant / images)

    def stretched(epochs: int) -> int:
        return max(1, round(epochs * factor))

    content = stage.model_dump()
    supernets = content.get("supernets", 1)
    epochs = max(stretched(content["epochs"]), supernets if isinstance(supernets, int) else 1)
    changed: dict[str, object] = {"epochs": epochs, "epochs_images": images}
    if "warmup_epochs" in content:
        changed["warmup_epochs"] = min(round(content["warmup_epochs"] * factor), epochs - 1)
    if "milestones" in content:
        changed["milestones"] = tuple(sorted({stretched(epoch) for epoch in content["milestones"]}))
        changed["val_interval"] = min(stretched(content["val_interval"]), epochs)
    return type(stage).model_validate(content | changed)
