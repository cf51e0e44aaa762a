"""Several architectures trained for a while, the better ones for longer: the one that is worth a whole training."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.nas.provenance import keep_architecture
from hitdet_nni.runs.run_directory import CANDIDATES, RUNGS, RunDirectory
from hitdet_nni.runs.rungs import PausedTraining, read_rungs, write_rungs
from hitdet_nni.studies.jobs import Job, Work, job_runner, opened
from hitdet_nni.training.retrain import train_until
from hitdet_nni.training.runner_config import STAGE

logger = logging.getLogger(__name__)


LAST_SHARE = 1 / 3
"""Share of the epochs so far whose mean loss is what an architecture is judged by."""

PAUSES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of a training after which an architecture may be out. What is learned in less says little of it
(docs/results.md), however many there are to choose from."""

GO_ON = 3
"""One in so many goes on after a pause."""

LEAST = 2
"""As many go on at the least, before the last pause."""


@dataclass(frozen=True)
class Rung:
    """Trainings that pause after the same epochs.

    Attributes:
        trained: Architectures that are trained.
        epochs: Epochs of each from its beginning, those before an earlier pause among them.
    """

    trained: int
    epochs: int


def rungs(count: int, epochs: int) -> list[Rung]:
    """Return where trainings pause, and how many get there; of the last ones a single one goes on to the end.

    Args:
        count: Architectures; a single one does not pause.
        epochs: Epochs of a whole training.

    Source:
        Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.
        Pausing trainings in place of new, longer ones: Swersky et al., Freeze-thaw Bayesian optimization, 2014.
    """
    if count == 1:
        return []
    by_end: dict[int, int] = {}
    left = count
    for share in PAUSES:
        by_end.setdefault(math.ceil(share * epochs), left)
        left = max(LEAST, math.ceil(left / GO_ON))
    by_left = {left: end for end, left in by_end.items()}  # where none would be out there is no pause
    return [Rung(left, end) for left, end in by_left.items()]


def epochs_before(count: int, epochs: int) -> int:
    """Return the epochs that all trainings together make until one is left, those of that one among them."""
    before = total = 0
    for rung in rungs(count, epochs):
        total += rung.trained * (rung.epochs - before)
        before = rung.epochs
    return total


def epochs_left(count: int, epochs: int) -> int:
    """Return the epochs that the one that is left has still to make."""
    pauses = rungs(count, epochs)
    return epochs - pauses[-1].epochs if pauses else epochs


def last_loss(losses: Sequence[float]) -> float:
    """Return the mean training loss of the last third of the epochs so far.

    After a quarter of a training this says more of the accuracy after a whole one than the accuracy of that time does:
    it is of many images, and smooth where that is still near zero (docs/results.md).

    Args:
        losses: Mean loss of each epoch, at least one.
    """
    return statistics.fmean(losses[-math.ceil(LAST_SHARE * len(losses)) :])


def halving_in_words(count: int, epochs: int) -> str:
    """Return how many architectures are trained for how long until one is left, and how many epochs all that is.

    Args:
        count: Architectures, 2 or more.
        epochs: Epochs of a whole training.
    """
    steps = ", ".join(f"{rung.trained} to epoch {rung.epochs}" for rung in rungs(count, epochs))
    share = (epochs_before(count, epochs) + epochs_left(count, epochs)) / epochs
    return f"{steps}, the best one to {epochs}; as many epochs as {share:.1f} whole trainings have"


@dataclass(frozen=True)
class UntilPause(Job):
    """A retraining as far as a pause.

    Attributes:
        architecture: What is trained.
        epochs: Epochs of the whole training after which it pauses.
        inherit: Weights of a supernet that it starts from; ``None`` for new ones.
    """

    architecture: Architecture
    epochs: int
    inherit: Path | None = None


def train_until_pause(one: UntilPause) -> float:
    """Train an architecture from where it has come to until a pause.

    A training that diverges is the worst there is, and the others go on; the processes of ``torchrun`` cannot, and end.

    Returns:
        The mean training loss of the last third of the epochs so far, infinity where it diverges.

    Raises:
        NonFiniteLossError: If the training of several processes diverges.
    """
    with opened(one) as run:
        if distributed.is_main():
            keep_architecture(run, one.architecture)
        settings = one.settings
        images = open_data(settings.data, settings.seed, one.architecture.skeleton.input_size)
        state = _checkpoints(run, settings)
        try:
            with run.timed(STAGE):
                losses = train_until(
                    one.epochs,
                    one.architecture,
                    settings,
                    images,
                    run.retrain,
                    checkpoints=state,
                    inherit=one.inherit,
                )
        except NonFiniteLossError as error:
            if distributed.launched():
                raise
            logger.warning("%s goes no further: %s", one.architecture.name, error)
            return math.inf
        if distributed.is_main():
            state.clear(but_newest=True)
        return distributed.mean(last_loss(losses))


def _checkpoints(run: RunDirectory, settings: Settings) -> CheckpointFolder:
    return CheckpointFolder(run.checkpoints(STAGE), settings.checkpoint.keep)


@dataclass(frozen=True)
class Chosen:
    """What a choice has ended with.

    Attributes:
        architecture: The best one.
        begun: The run directory of its training, which has come to the last pause; ``None`` of one without rivals.
    """

    architecture: Architecture
    begun: RunDirectory | None


def best_by_halving(
    architectures: Sequence[Architecture],
    settings: Settings,
    folder: Path,
    processes: int = 1,
    inherit: Path | None = None,
) -> Chosen:
    """Train architectures, pause, and go on with the better ones, until one is left.

    Choices are by the loss on training images; the validation images have no part in them. What was trained before an
    interruption is not trained again.

    Args:
        architectures: Two or more, with different names.
        settings: All settings, of the whole training.
        folder: Where the run directories of the trainings go, and ``rungs.csv``.
        processes: Trainings side by side, each in a process of its own; 1 trains in this process.
        inherit: Weights of a supernet that all start from.

    Raises:
        InputError: If the choice that was begun there is among other architectures, or its table is damaged.
        NonFiniteLossError: If a training of several processes diverges.
    """
    note_candidates(architectures, folder)
    table = folder / RUNGS
    there = read_rungs(table) if distributed.is_main() and table.exists() else ()
    trainings: list[PausedTraining] = list(distributed.broadcast_object(there))
    left = list(architectures)
    lengths = rungs(len(architectures), settings.retrain.epochs)
    work = Work(STAGE, train_until_pause, lambda loss: {"loss": loss})
    with job_runner(work, processes, _tell) as run:
        for number, rung in enumerate(lengths, 1):
            if not any(one.rung == number for one in trainings):
                losses = run([UntilPause(settings, folder / one.name, one, rung.epochs, inherit) for one in left])
                going_on = lengths[number].trained if number < len(lengths) else 1
                trainings += _ranked(number, rung, left, losses, going_on)
                if distributed.is_main():
                    write_rungs(table, trainings)
            kept = [one.architecture for one in trainings if one.rung == number and one.kept]
            logger.info("epoch %d: %s go on", rung.epochs, ", ".join(kept))
            left = [one for one in left if one.name in kept]
            if distributed.is_main():
                for out in (one for one in architectures if one not in left):
                    _checkpoints(RunDirectory(folder / out.name), settings).clear()
    (best,) = left
    return Chosen(best, RunDirectory(folder / best.name))


def _ranked(
    number: int, rung: Rung, architectures: Sequence[Architecture], losses: Sequence[float], going_on: int
) -> list[PausedTraining]:
    """Return the trainings at a pause, the best first, of which so many go on."""
    order = sorted(zip(losses, architectures, strict=True), key=lambda pair: pair[0])
    return [
        PausedTraining(number, rung.epochs, one.name, loss, place < going_on) for place, (loss, one) in enumerate(order)
    ]


def note_candidates(architectures: Sequence[Architecture], folder: Path) -> None:
    """Write what is chosen among, or refuse to go on with a choice among others, of which too much was trained.

    Args:
        architectures: The candidates.
        folder: Of the choice.

    Raises:
        InputError: If the choice that was begun there is among others.
    """
    file = folder / CANDIDATES
    candidates = {one.name: dict(one.sample) for one in architectures}
    there = distributed.broadcast_object(read_json(file) if file.exists() else None)
    if there is None:
        if distributed.is_main():
            write_json(file, candidates)
    elif there != candidates:
        raise InputError(
            f"the choice there is among {len(there)} architectures, not these {len(candidates)}",
            source=file,
            allowed="as many of the same ones, or --force",
        )


def _tell(done: int, total: int, one: UntilPause, loss: float) -> None:
    logger.info("%s to epoch %d, %d of %d: loss %.3f", one.folder.name, one.epochs, done, total, loss)
