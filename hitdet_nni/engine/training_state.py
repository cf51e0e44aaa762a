"""The state that any training is saved as, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.randomness import random_state, set_random_state
from hitdet_nni.errors import InputError


class Stateful(Protocol):
    """Something whose state belongs into a checkpoint: plain numbers, strings, tensors, lists and dicts."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go back to a state."""


@dataclass(frozen=True)
class Position:
    """Where a training stands.

    Attributes:
        epoch: Finished epochs.
        step_in_epoch: Finished steps of the running epoch.
        steps: Finished steps of the training.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0


@dataclass(frozen=True)
class TrainingObjects:
    """What a training works on.

    Attributes:
        module: Parameters and buffers.
        optimizers: Optimisers.
        schedulers: Schedulers of learning rates.
        parts: What else has a state, by name; each process has its own.
        shared: What else has a state that is the same in all processes.
    """

    module: nn.Module
    optimizers: Sequence[Stateful]
    schedulers: Sequence[Stateful]
    parts: Mapping[str, Stateful]
    shared: Mapping[str, Stateful] = field(default_factory=dict)


class SavedTraining:
    """The content of a checkpoint.

    Args:
        state: What :meth:`TrainingCheckpoints.save` wrote.
        source: Where it lies, for messages.

    Attributes:
        position: Where the training stood.
    """

    def __init__(self, state: Mapping[str, Any], source: Path) -> None:
        self.source = source
        self.position = Position(state["epoch"], state["step_in_epoch"], state["steps"])
        self._state = state
        self._own: Mapping[str, Any] = state["each"][distributed.rank()]

    def restore(self, objects: TrainingObjects) -> None:
        """Bring everything back but the random number generators.

        Raises:
            InputError: If an earlier version has saved it, without something that processes share.
        """
        known = self._state.get("shared", {})
        for name in objects.shared:
            if name not in known:
                allowed = "that version, or --force to start again"
                raise InputError(f"is of an earlier version, without {name}", source=self.source, allowed=allowed)
        objects.module.load_state_dict(self._state["module"])
        for optimizer, saved in zip(objects.optimizers, self._state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(objects.schedulers, self._state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for name, part in objects.parts.items():
            part.load_state_dict(self._own["parts"][name])
        for name, part in objects.shared.items():
            part.load_state_dict(known[name])

    def part(self, name: str) -> Mapping[str, Any]:
        """Return the state of a part of this process."""
        state: Mapping[str, Any] = self._own["parts"][name]
        return state

    def restore_random(self) -> None:
        """Restore the random number generators of this process."""
        set_random_state(self._own["random"])


class TrainingCheckpoints:
    """Saves a training so that it can go on bit-equal, in one form whatever trains.

    A checkpoint holds the position, the states of the module, of all optimisers and of all schedulers, what processes
    share besides, and of every process the random number generators and its parts. Data loaders have no state of their
    own (:mod:`hitdet_nni.data.sampling`).

    Args:
        folder: Where the checkpoints lie.
        every_steps: Steps between checkpoints besides those that a training makes anyway; 0 for none.
        conditions: What must be now as it was then, beside the number of processes: values by name.
    """

    def __init__(self, folder: CheckpointFolder, every_steps: int, **conditions: str) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self._conditions = {"processes": distributed.world_size(), **conditions}

    def newest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        files = self.folder.files()
        return files[-1] if files else None

    def load(self) -> SavedTraining | None:
        """Read the newest whole checkpoint; ``None`` where there is none.

        Raises:
            InputError: If it was made by another number of processes, or under other conditions.
        """
        state = distributed.broadcast_object(self.folder.load() if distributed.is_main() else None)
        if state is None:
            return None
        for name, now in self._conditions.items():
            if state.get(name, now) != now:  # an earlier version has saved fewer
                raise InputError(
                    f"the checkpoint has {state[name]}, this training has {now}",
                    source=self.folder.path,
                    key=name,
                    allowed=f"the same {name}, or --force to start again",
                )
        return SavedTraining(state, self.folder.path)

    def is_due(self, steps: int) -> bool:
        """Check whether a checkpoint belongs behind a step, which does not end an epoch.

        Args:
            steps: Finished steps of the training.
        """
        return self.every_steps > 0 and steps % self.every_steps == 0

    def save(self, position: Position, objects: TrainingObjects) -> bool:
        """Write a checkpoint; all processes call it.

        Args:
            position: Where the training stands.
            objects: What it works on.

        Returns:
            Whether all parameters are finite. If not, nothing is written: no training can go on from there.
        """
        # A finite loss can have gradients that are not.
        if not torch.stack([parameter.isfinite().all() for parameter in objects.module.parameters()]).all():
            return False
        # Running statistics are each process's own; only their mean is ever used.
        distributed.average(running_statistics(objects.module))
        shared = {name: part.state_dict() for name, part in objects.shared.items()}
        parts = {name: part.state_dict() for name, part in objects.parts.items()}
        each = distributed.gather({"random": random_state(), "parts": parts})
        if distributed.is_main():
            self.folder.save(
                position.steps,
                {
                    **self._conditions,
                    "epoch": position.epoch,
                    "step_in_epoch": position.step_in_epoch,
                    "steps": position.steps,
                    "module": objects.module.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in objects.optimizers],
                    "schedulers": [scheduler.state_dict() for scheduler in objects.schedulers],
                    "shared": shared,
                    "each": each,
                },
            )
        return True


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances of batch normalisation, each ``[C]``."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    statistics = (statistic for norm in norms for statistic in (norm.running_mean, norm.running_var))
    return [statistic for statistic in statistics if statistic is not None]
