"""Several architectures trained for a while, the better ones for longer: the one that is worth a whole training."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import RetrainSettings, Settings
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.io import read_json, write_csv, write_json
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.training_log import TrainingLog, read_training_log
from hitdet_nni.studies.jobs import Work, run_jobs
from hitdet_nni.studies.retrainings import Retraining, retrain_once
from hitdet_nni.training.runner_config import STAGE

logger = logging.getLogger(__name__)


LAST_SHARE = 1 / 3
"""Share of a training whose mean loss is what an architecture is judged by: what comes after its first milestone."""


MOST_RUNGS = 4
"""Lengths of training before a whole one, at most: a sixteenth of it is the least. What is learned in less says nothing
of an architecture (docs/results.md), however many there are to choose from."""


@dataclass(frozen=True)
class Rung:
    """Trainings of one length.

    Attributes:
        trained: Architectures that are trained.
        epochs: Epochs of each.
    """

    trained: int
    epochs: int


def rungs(count: int, epochs: int) -> list[Rung]:
    """Return the trainings that come before a whole one: of half of it the last architectures, and so on.

    Args:
        count: Architectures, 2 or more.
        epochs: Epochs of a whole training.

    Source:
        Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.
    """
    number = min(MOST_RUNGS, math.ceil(math.log2(count)))
    return [
        Rung(math.ceil(count / 2**place), max(1, math.ceil(epochs / 2 ** (number - place)))) for place in range(number)
    ]


def epochs_before(count: int, epochs: int) -> int:
    """Return the epochs of all trainings that :func:`rungs` names."""
    return sum(rung.trained * rung.epochs for rung in rungs(count, epochs))


def shortened(settings: RetrainSettings, epochs: int) -> RetrainSettings:
    """Return a training of fewer epochs whose learning rate falls at the same shares of it."""
    share = epochs / settings.epochs
    milestones = sorted({max(1, round(share * milestone)) for milestone in settings.milestones})
    update = {
        "epochs": epochs,
        "milestones": tuple(milestones),
        "warmup_iterations": round(share * settings.warmup_iterations),
        "val_interval": epochs,
    }
    return settings.model_copy(update=update)


def last_loss(log: TrainingLog, epochs: int) -> float:
    """Return the mean training loss of the last third of a training, infinity where none was logged.

    After a quarter of a training this says more of the accuracy after a whole one than the accuracy of that time does:
    it is of many images, and smooth where that is still near zero (docs/results.md).

    Args:
        log: The training's log.
        epochs: Its epochs.
    """
    losses = [loss for position, loss in log.losses if position > (1 - LAST_SHARE) * epochs]
    return statistics.fmean(losses) if losses else math.inf


def halving_in_words(count: int, epochs: int) -> str:
    """Return how many architectures are trained for how long until one is left, and how many epochs that are.

    Args:
        count: Architectures, 2 or more.
        epochs: Epochs of a whole training.
    """
    steps = ", ".join(f"{rung.trained} of {rung.epochs} epochs" for rung in rungs(count, epochs))
    share = epochs_before(count, epochs) / epochs
    return f"shorter trainings before the whole one: {steps}; as many epochs as {share:.1f} whole ones have"


def short_training(one: Retraining) -> tuple[float, float]:
    """Train an architecture for a while, or read what that has ended with; return its last loss and its mAP.

    A training that diverges is the worst there is, and the others go on; the processes of ``torchrun`` cannot, and end.

    Raises:
        NonFiniteLossError: If the training of several processes diverges.
    """
    try:
        reached = float(retrain_once(one)["mAP"])
    except NonFiniteLossError as error:
        if distributed.launched():
            raise
        logger.warning("%s goes no further: %s", one.architecture.name, error)
        return math.inf, 0.0
    loss = last_loss(read_training_log(RunDirectory(one.folder).retrain), one.settings.retrain.epochs)
    return distributed.broadcast_object(loss), reached


def best_by_halving(
    architectures: Sequence[Architecture],
    settings: Settings,
    folder: Path,
    processes: int = 1,
) -> Architecture:
    """Return the architecture that is best after trainings of increasing length, of which each keeps the better half.

    Choices are by the loss on training images; the validation images have no part in them. What was trained before an
    interruption is not trained again.

    Args:
        architectures: Two or more, with different names.
        settings: All settings, of the whole training.
        folder: Where the run directories of the shorter trainings go, and ``rungs.csv``.
        processes: Trainings side by side, each in a process of its own; 1 trains in this process.

    Raises:
        InputError: If the choice that was begun there is among other architectures.
    """
    _note_candidates(architectures, folder / "candidates.json")
    left, rows = list(architectures), []
    lengths = rungs(len(architectures), settings.retrain.epochs)
    for number, rung in enumerate(lengths, 1):
        changed = settings.model_copy(update={"retrain": shortened(settings.retrain, rung.epochs)})
        jobs = [Retraining(changed, folder / f"rung-{number}-{one.name}", one) for one in left]
        results = run_jobs(Work(STAGE, short_training, lambda result: {"mAP": result[1]}), jobs, processes, _tell)
        found = [(*result, one) for result, one in zip(results, left, strict=True)]
        found.sort(key=lambda row: row[0])
        last = number == len(lengths)
        kept = [one for *_, one in found[: 1 if last else math.ceil(len(found) / 2)]]
        rows += [
            {
                "rung": number,
                "epochs": rung.epochs,
                "architecture": one.name,
                "loss": loss,
                "mAP": mAP,
                "kept": int(one in kept),
            }
            for loss, mAP, one in found
        ]
        logger.info("rung %d, %d epochs: %s go on", number, rung.epochs, ", ".join(one.name for one in kept))
        left = kept
    if distributed.is_main():
        write_csv(folder / "rungs.csv", list(rows[0]), rows)
    return left[0]


def _note_candidates(architectures: Sequence[Architecture], file: Path) -> None:
    """Write what is chosen among, or refuse to go on with a choice among others, of which too much was trained."""
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


def _tell(done: int, total: int, one: Retraining, result: tuple[float, float]) -> None:
    logger.info("%s, %d of %d: loss %.3f, mAP %.3f", one.folder.name, done, total, *result)
