"""What the stages have in common: their epochs, the count of images, and what is left of a finished training."""

from __future__ import annotations

from collections.abc import Callable

from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.supernet_pretraining import clear_pretraining

OnEpoch = Callable[[str, EpochRecord], None]
"""Called with the stage's name (``"screening backbone"``, ``"search"``) and the record of each epoch."""


def ignore_epoch(stage: str, record: EpochRecord) -> None:
    """Make nothing of an epoch; what is written and shown of it does not depend on this."""


def note_images(run: RunDirectory, data: DetectionData) -> None:
    """Write down how many images a stage has."""
    if distributed.is_main():
        run.note_images(len(data.train.image_ids), len(data.val.image_ids))


def clear_training(run: RunDirectory, stage: str) -> None:
    """Remove what a stage would go on from: its result is written."""
    CheckpointFolder(run.checkpoints(stage)).clear()
    clear_pretraining(run, stage)
