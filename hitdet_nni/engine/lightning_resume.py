"""Exact resume of a training with Lightning: when it is saved, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl

from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.training_state import Position, Stateful, TrainingCheckpoints, TrainingObjects
from hitdet_nni.errors import NonFiniteLossError


@contextmanager
def named_divergence(stage: str, resume: ExactResume | None) -> Iterator[None]:
    """Say of a training that diverges within the context which one it is, and what its last good checkpoint is.

    Args:
        stage: What is trained.
        resume: Knows the position in the training and its checkpoints, where there are any.

    Raises:
        NonFiniteLossError: Where a step or the end of an epoch raises ``FloatingPointError``.
    """
    try:
        yield
    except FloatingPointError as error:
        steps, checkpoint = (None, None) if resume is None else (resume.steps, resume.newest())
        raise NonFiniteLossError(stage, steps, (), checkpoint, str(error)) from error


class Resumable(Protocol):
    """A sampler that can begin in the middle of an epoch, such as :mod:`hitdet_nni.data.sampling`'s."""

    steps: int

    def start_at(self, epoch: int, step: int) -> None:
        """Begin at a step of an epoch."""


class ExactResume(pl.callbacks.Checkpoint):  # type: ignore[misc]
    """Saves everything that the rest of a training depends on, and starts it again from there.

    Saved is what :class:`~hitdet_nni.engine.training_state.TrainingCheckpoints` says, removed operators among it.
    Lightning runs this callback after all others, so that an epoch's checkpoint holds what they did at its end.

    Make it before the trainer starts: the samplers must know their start before workers prefetch.

    Args:
        folder: Where checkpoints lie; the newest whole one is where the training starts.
        every_steps: Steps between checkpoints besides those at the end of epochs; 0 for none.
        samplers: Samplers of the training's loaders.
        parts: What else has a state, by name.
        images: Tells the images of the training from others.

    Raises:
        InputError: If the checkpoint was made by another number of processes, or of other images.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every_steps: int,
        samplers: Iterable[Resumable],
        parts: Mapping[str, Stateful],
        images: str,
    ) -> None:
        self.checkpoints = TrainingCheckpoints(folder, every_steps, images=images)
        self.samplers = tuple(samplers)
        self.parts = dict(parts)
        self.epoch = self.step_in_epoch = self.steps = 0
        self._saved = self.checkpoints.load()
        if self._saved is not None:
            self.epoch, self.step_in_epoch, self.steps = astuple(self._saved.position)
            for sampler in self.samplers:
                sampler.start_at(self.epoch, self.step_in_epoch)

    def newest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        return self.checkpoints.newest()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Go back to the checkpoint; optimisers and schedulers exist by now."""
        if self._saved is None:
            return
        self._saved.restore(self._objects(trainer, pl_module))
        progress = trainer.fit_loop.epoch_progress.current
        progress.processed = progress.completed = self.epoch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the random number generators as late as possible."""
        if self._saved is not None:
            self._saved.restore_random()
            self._saved = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, and save if it is time.

        Raises:
            FloatingPointError: If it is, and a parameter is not finite.
        """
        self.step_in_epoch += 1
        self.steps += 1
        # The last step of an epoch is followed by the epoch's own checkpoint.
        if self.step_in_epoch < self.samplers[0].steps and self.checkpoints.is_due(self.steps):
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the end of an epoch as the beginning of the next.

        Raises:
            FloatingPointError: If a parameter is not finite, so that no training can go on from here.
        """
        self.epoch, self.step_in_epoch = trainer.current_epoch + 1, 0
        self._save(trainer, pl_module)

    def _save(self, trainer: Any, pl_module: Any) -> None:
        position = Position(self.epoch, self.step_in_epoch, self.steps)
        if not self.checkpoints.save(position, self._objects(trainer, pl_module)):
            raise FloatingPointError("a parameter is not finite")

    def _objects(self, trainer: Any, pl_module: Any) -> TrainingObjects:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        return TrainingObjects(pl_module, trainer.optimizers, schedulers, self.parts)
