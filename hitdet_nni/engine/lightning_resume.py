"""Exact resume of a training with Lightning: what is saved, when, and how the training goes on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.randomness import random_state, set_random_state
from hitdet_nni.errors import InputError


class Resumable(Protocol):
    """A sampler that can begin in the middle of an epoch, such as :mod:`hitdet_nni.data.sampling`'s."""

    steps: int

    def start_at(self, epoch: int, step: int) -> None:
        """Begin at a step of an epoch."""


class Stateful(Protocol):
    """Something whose state belongs into a checkpoint: plain numbers, strings, tensors, lists and dicts."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go back to a state."""


class ExactResume(pl.callbacks.Checkpoint):  # type: ignore[misc]
    """Saves everything that the rest of a training depends on, and starts it again from there.

    Saved are parameters, buffers and removed operators, all optimisers and schedulers, the position in the order of
    pictures, and of every process the random number generators and ``parts``. Data loaders have no state of their own
    (:mod:`hitdet_nni.data.sampling`). Lightning runs this callback after all others, so that an epoch's checkpoint
    holds what they did at its end.

    Make it before the trainer starts: the samplers must know their start before workers prefetch.

    Args:
        folder: Where checkpoints lie; the newest whole one is where the training starts.
        every_steps: Steps between checkpoints besides those at the end of epochs; 0 for none.
        samplers: Samplers of the training's loaders.
        parts: What else has a state, by name.

    Raises:
        InputError: If the checkpoint was made by another number of processes.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every_steps: int,
        samplers: Iterable[Resumable],
        parts: Mapping[str, Stateful],
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.samplers = tuple(samplers)
        self.parts = dict(parts)
        self.epoch = self.step_in_epoch = self.steps = 0
        self._state: dict[str, Any] | None = distributed.from_main(folder.load() if distributed.is_main() else None)
        if self._state is not None:
            self._start_at(self._state)

    def newest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        files = self.folder.files()
        return files[-1] if files else None

    def _start_at(self, state: Mapping[str, Any]) -> None:
        if state["processes"] != distributed.processes():
            raise InputError(
                f"was made by {state['processes']} process(es), this training has {distributed.processes()}",
                source=self.folder.path,
                allowed="the same number of processes, or --force to start again",
            )
        self.epoch, self.step_in_epoch, self.steps = state["epoch"], state["step_in_epoch"], state["steps"]
        for sampler in self.samplers:
            sampler.start_at(self.epoch, self.step_in_epoch)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Go back to the checkpoint; optimisers and schedulers exist by now."""
        if self._state is None:
            return
        state = self._state
        pl_module.load_state_dict(state["module"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        for name, part in self.parts.items():
            part.load_state_dict(state["each"][distributed.rank()]["parts"][name])
        progress = trainer.fit_loop.epoch_progress.current
        progress.processed = progress.completed = self.epoch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the random number generators as late as possible."""
        if self._state is not None:
            set_random_state(self._state["each"][distributed.rank()]["random"])
            self._state = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, and save if it is time."""
        self.step_in_epoch += 1
        self.steps += 1
        # The last step of an epoch is followed by the epoch's own checkpoint.
        last = self.step_in_epoch >= self.samplers[0].steps
        if self.every_steps and self.steps % self.every_steps == 0 and not last:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the end of an epoch as the beginning of the next."""
        self.epoch, self.step_in_epoch = trainer.current_epoch + 1, 0
        self._save(trainer, pl_module)

    def _save(self, trainer: Any, pl_module: Any) -> None:
        # A finite loss can have gradients that are not: the next loss then ends the training, and no such checkpoint is
        # to stand before it.
        if not torch.stack([parameter.isfinite().all() for parameter in pl_module.parameters()]).all():
            return
        # Running statistics of batch normalisation are each process's own; only their mean is ever used.
        distributed.average(pl_module.buffers())
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        each = distributed.gather({"random": random_state(), "parts": parts})
        if not distributed.is_main():
            return
        self.folder.save(
            self.steps,
            {
                "processes": distributed.processes(),
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "steps": self.steps,
                "module": pl_module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "each": each,
            },
        )
