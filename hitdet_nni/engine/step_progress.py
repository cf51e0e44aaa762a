"""Lightning trainings that tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from hitdet_nni.engine.progress import Stage


class StepProgress(pl.Callback):  # type: ignore[misc]
    """Tells of every step, and that an evaluation begins; what the evaluation finds is told by who makes it.

    It stands before the callback that evaluates.

    Args:
        stage: Tells.
        last_loss: Gives the loss of the step that has ended.
    """

    def __init__(self, stage: Stage, last_loss: Callable[[], float]) -> None:
        self.stage = stage
        self.last_loss = last_loss

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell of a step."""
        self.stage.step(self.last_loss())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell that the evaluation begins."""
        self.stage.evaluate()
