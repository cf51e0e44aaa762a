"""Pretraining of a detector supernet's backbone on the boxes of the images that its weights are to learn from."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.box_crops import open_boxes
from hitdet_nni.data.loaders import weights_half
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.backbone_weights import save_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.io import WEIGHTS_FILE, writing
from hitdet_nni.nas.supernet import Phase
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.pretrain import Backbone, train_classifier

logger = logging.getLogger(__name__)


def pretraining_stage(stage: str) -> str:
    """Return what the pretraining before a stage is called in messages."""
    return f"{stage}, pretraining"


def with_pretrained_backbone(
    run: RunDirectory, phase: Phase, settings: Settings, data: DetectionData, seed: int
) -> Phase:
    """Pretrain the backbone of a phase where the settings ask for it, and return the phase that starts from it.

    The classifier learns from the boxes of the half of the training images that is for weights: the architecture
    parameters are still judged on images that no weight has seen. Nothing is done where the phase has weights already.
    Goes on from the newest checkpoint; what has ended is read off its file.

    Args:
        run: Its checkpoints' folder holds the weights until :func:`clear_pretraining`.
        phase: What is to be trained: its backbone's candidates, or its one operator.
        settings: All settings; ``data.seed`` decides on the halves, as in the phase.
        data: The images and the file of their halves.
        seed: Seed of initialisation, order and augmentation.

    Raises:
        InputError: If no box is fit for it, or a checkpoint was made by another number of processes.
        NonFiniteLossError: If a loss or a parameter is NaN or infinite.

    Source:
        An addition. Section 4.2 pretrains on ImageNet.
    """
    if phase.pretrained is not None or not settings.pretrain.boxes:
        return phase
    folder = _folder(run, phase.stage)
    file = folder / WEIGHTS_FILE
    if not distributed.broadcast_object(file.exists()):
        with run.timed("pretraining"):
            _pretrain(folder, phase, settings, data, seed)
    return replace(phase, pretrained=file)


def clear_pretraining(run: RunDirectory, stage: str) -> None:
    """Remove the weights that a stage has started from: its result is written."""
    CheckpointFolder(_folder(run, stage)).clear()


def _folder(run: RunDirectory, stage: str) -> Path:
    return run.checkpoints(f"{stage} pretraining")


def _pretrain(folder: Path, phase: Phase, settings: Settings, data: DetectionData, seed: int) -> None:
    """Train the backbone of a phase and write its weights into a folder."""
    names = phase.space["backbone"]
    labels = phase.skeleton.labels("backbone")
    backbone = Backbone(phase.skeleton, tuple(names) if len(names) > 1 else dict.fromkeys(labels, names[0]))
    boxes = open_boxes(data, settings, weights_half(data, settings.data, phase.skeleton, seed))
    stage = pretraining_stage(phase.stage)
    logger.info("%s: %d boxes of %d classes", stage, len(boxes.train.labels), len(set(boxes.train.labels)))
    checkpoints = CheckpointFolder(folder, settings.checkpoint.keep)
    classifier, last = train_classifier(backbone, settings.model_copy(update={"seed": seed}), boxes, stage, checkpoints)
    logger.info("%s: top-1 %.3f of %d validation boxes", stage, last.val_top1, len(boxes.val.labels))
    if distributed.is_main():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        save_backbone(classifier.backbone, folder / WEIGHTS_FILE, backbone.sample)
        for saved in checkpoints.files():
            saved.unlink()
    distributed.barrier()
