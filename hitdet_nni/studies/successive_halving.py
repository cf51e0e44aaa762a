"""Several architectures trained for a while, the better ones for longer: the one that is worth a whole training."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import RetrainSettings, Settings
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.engine import distributed
from hitdet_nni.io import write_csv
from hitdet_nni.studies.retrainings import Retraining, retrain_once
from hitdet_nni.studies.validation_halves import accuracies

logger = logging.getLogger(__name__)


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
    """Return the trainings that come before a whole one: of half of it the last two architectures, and so on.

    Args:
        count: Architectures, 2 or more.
        epochs: Epochs of a whole training.

    Source:
        Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.
    """
    number = math.ceil(math.log2(count))
    return [
        Rung(math.ceil(count / 2**place), max(1, math.ceil(epochs / 2 ** (number - place)))) for place in range(number)
    ]


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


def best_by_halving(
    architectures: Sequence[Architecture], settings: Settings, folder: Path, validation: CocoAnnotations
) -> Architecture:
    """Return the architecture that is best after trainings of increasing length, of which each keeps the better half.

    Choices are by every other validation image. What was trained before an interruption is not trained again.

    Args:
        architectures: Two or more, with different names.
        settings: All settings, of the whole training.
        folder: Where the run directories of the shorter trainings go, and ``rungs.csv``.
        validation: The validation images.
    """
    left, rows = list(architectures), []
    for number, rung in enumerate(rungs(len(architectures), settings.retrain.epochs), 1):
        changed = settings.model_copy(update={"retrain": shortened(settings.retrain, rung.epochs)})
        found: list[tuple[float, Architecture]] = []
        for one in left:
            job = Retraining(changed, folder / f"rung-{number}-{one.name}", one)
            retrain_once(job)
            found.append((distributed.broadcast_object(accuracies(job, validation)[0]), one))
        found.sort(key=lambda pair: pair[0], reverse=True)
        kept = [one for _, one in found[: math.ceil(len(found) / 2)]]
        rows += [
            {"rung": number, "epochs": rung.epochs, "architecture": one.name, "mAP": mAP, "kept": int(one in kept)}
            for mAP, one in found
        ]
        logger.info("rung %d, %d epochs: %s go on", number, rung.epochs, ", ".join(one.name for one in kept))
        left = kept
    if distributed.is_main():
        write_csv(folder / "rungs.csv", list(rows[0]), rows)
    return left[0]
