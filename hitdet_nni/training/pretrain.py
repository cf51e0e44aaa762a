"""Classification pretraining of a backbone: the supernet's with equal architecture parameters, or a found one's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import ActivationsByComponent, PretrainSettings, Settings, describe_lr, scaled_lr
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.class_folders import ClassificationData
from hitdet_nni.data.identity import identity_of_files
from hitdet_nni.data.loaders import end_workers, pretraining_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.backbone_weights import save_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.epoch_losses import EpochLosses
from hitdet_nni.engine.lightning_resume import ExactResume, named_divergence
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.step_progress import StepProgress
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.engine.training_state import Stateful
from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE, read_json, write_json
from hitdet_nni.model.classifier import HitClassifier, HitClassifierSpace
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, describe_fallback, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import write_metrics
from hitdet_nni.training.classification import (
    AccuracyMonitor,
    ClassificationModule,
    EpochAccuracy,
    lightning_trainer,
)

logger = logging.getLogger(__name__)

STAGE = "pretrain"
"""What a pretraining by itself is called in messages and among the checkpoints."""

OnEpochs = Callable[[list[EpochAccuracy]], None]
"""Called by the main process at the end of every epoch with the records of all so far."""

_PARTS_OF_SKELETON = {"stem_channels", "widths", "depths", "strides", "tail"}


@dataclass(frozen=True)
class Backbone:
    """What is pretrained.

    Attributes:
        skeleton: The detector's skeleton.
        operators: The candidates of every block, or the operator of each block by its label where it is decided.
    """

    skeleton: Skeleton
    operators: tuple[str, ...] | Mapping[str, str]

    @property
    def sample(self) -> Mapping[str, str] | None:
        """Operator of each block by its label; ``None`` for a supernet."""
        return self.operators if isinstance(self.operators, Mapping) else None

    def describe(self) -> dict[str, Any]:
        """Return what the weights depend on, as plain values."""
        skeleton = self.skeleton.model_dump(mode="json", include=_PARTS_OF_SKELETON)
        operators = list(self.operators) if self.sample is None else dict(self.sample)
        return {"skeleton": skeleton, "operators": operators}

    def build(self, num_classes: int) -> HitClassifier:
        """Build the classifier; a supernet's blocks are the search's mixed layers, of equal and constant weights.

        Source:
            Section 4.2: "pretrain the backbone supernet on ImageNet for 10 epochs with fixed architecture parameters".
        """
        if self.sample is not None:
            operators = [self.sample[label] for label in self.skeleton.labels("backbone")]
            return HitClassifier(self.skeleton, operators, num_classes)
        space = HitClassifierSpace(self.skeleton, tuple(self.operators), num_classes)
        ColumnSparseDARTS().mutate_model(space)
        classifier: HitClassifier = space.classifier
        for layer in classifier.modules():
            if isinstance(layer, ColumnSparseMixedLayer):
                nn.init.zeros_(layer.alpha)
                layer.alpha.requires_grad_(False)
        return classifier


def found_backbone(architecture: Architecture) -> Backbone:
    """Return the backbone of a decided architecture."""
    skeleton = architecture.skeleton
    return Backbone(skeleton, {label: architecture.sample[label] for label in skeleton.labels("backbone")})


def weights_file(run: RunDirectory) -> Path:
    """Return the file of the pretrained backbone's weights, which ``*.pretrained`` in the settings takes."""
    return run.path / WEIGHTS_FILE


def open_run(run: RunDirectory, backbone: Backbone, settings: Settings, *, force: bool, resume: bool) -> None:
    """Prepare a run directory for the pretraining of a backbone; the main process does so, the others wait for it.

    Raises:
        InputError: If the directory holds something else, or the pretraining of another backbone.
    """
    if settings.batch_norm == "frozen":
        raise InputError(
            "is 'frozen', which needs statistics that pretraining is to measure",
            key="batch_norm",
            allowed=("local", "synced"),
        )
    run.open(settings, force=force, resume=resume)
    description = run.path / "backbone.json"
    if distributed.is_main():
        if description.exists() and read_json(description) != backbone.describe():
            raise InputError(
                "another backbone is pretrained there", source=description, allowed="the same backbone, or --force"
            )
        write_json(description, backbone.describe())
    distributed.barrier()


def pretrain(
    run: RunDirectory,
    backbone: Backbone,
    settings: Settings,
    data: ClassificationData,
    on_epoch: Callable[[EpochAccuracy], None] = lambda record: None,
) -> dict[str, Any]:
    """Pretrain a backbone; write ``metrics.csv``, ``weights.pth`` and ``metrics.json``.

    Goes on from the newest checkpoint; does nothing where the result is there already.

    Args:
        run: An opened run directory.
        backbone: What is pretrained.
        settings: The ``pretrain`` section, seed, precision, batch normalisation, checkpoints.
        data: The images.
        on_epoch: Called by the main process at the end of every epoch.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: If an image cannot be read, or a checkpoint was made by another number of processes.
        NonFiniteLossError: If a loss or a parameter is NaN or infinite.

    Source:
        Section 4.2. It gives the epochs; SGD's settings and the augmentation are common ones for such networks.
    """
    if distributed.broadcast_object(run.metrics.exists()):
        finished: dict[str, Any] = read_json(run.metrics)
        return finished

    def keep(records: list[EpochAccuracy]) -> None:
        write_metrics(run.path / "metrics.csv", [asdict(record) for record in records])
        on_epoch(records[-1])

    checkpoints = CheckpointFolder(run.checkpoints(STAGE), settings.checkpoint.keep)
    classifier, last = train_classifier(backbone, settings, data, STAGE, checkpoints, keep)
    result = {
        "kind": "supernet" if backbone.sample is None else "found",
        "classes": len(data.classes),
        "epochs": settings.pretrain.epochs,
        "train_loss": last.train_loss,
        "val_top1": last.val_top1,
        "val_top5": last.val_top5,
        "weights": str(weights_file(run).relative_to(run.path)),
    }
    if distributed.is_main():
        save_backbone(classifier.backbone, weights_file(run), backbone.sample)
        write_json(run.metrics, result)
        checkpoints.clear()
    distributed.barrier()
    return result


def train_classifier(
    backbone: Backbone,
    settings: Settings,
    data: ClassificationData,
    stage: str,
    checkpoints: CheckpointFolder,
    on_epochs: OnEpochs = lambda records: None,
) -> tuple[HitClassifier, EpochAccuracy]:
    """Train a backbone as a classifier; goes on from the newest checkpoint.

    Args:
        backbone: What is trained.
        settings: The ``pretrain`` section, seed, precision, batch normalisation, how gradients of candidates count.
        data: The images, or boxes of them.
        stage: What the training is called in messages.
        checkpoints: Where checkpoints are saved; they stay.
        on_epochs: Called by the main process at the end of every epoch.

    Returns:
        The classifier and what was measured at the end.

    Raises:
        InputError, NonFiniteLossError: As :func:`pretrain`.
    """

    def keep(records: list[EpochAccuracy]) -> None:
        on_epochs(records)
        progress.end_epoch({"loss": records[-1].train_loss, "top1": records[-1].val_top1})

    pl.seed_everything(settings.seed, verbose=False)
    classifier = backbone.build(len(data.classes))
    classifier.to(memory_format=torch.channels_last)
    apply_batch_norm(classifier, settings.batch_norm)
    activations = settings.supernet.activations
    set_activations(
        classifier, activations.backbone if isinstance(activations, ActivationsByComponent) else activations
    )
    fallback = describe_fallback(classifier)
    if fallback is not None and distributed.is_main():
        logger.info("%s: supernet.activations: %s", stage, fallback)
    loader, val_loader = pretraining_loaders(data, settings.pretrain, settings.seed)
    losses = EpochLosses()
    monitor = AccuracyMonitor(val_loader, losses, keep)
    precision = Precision(settings.precision, distributed.device())
    parts: dict[str, Stateful] = {"losses": losses, "monitor": monitor, "precision": precision}
    images = identity_of_files(data.train.files, data.train.labels)
    resume = ExactResume(checkpoints, settings.checkpoint.every_steps, [loader.sampler], parts, images)
    module = ClassificationModule(
        classifier,
        _for_processes(settings.pretrain),
        data.train.files,
        settings.pretrain.epochs * len(loader),
        precision,
        losses,
        resume,
        stage,
        settings.weights.candidate_gradients,
    )
    progress = Stage(stage, settings.pretrain.epochs, len(loader), epoch=resume.epoch, step=resume.step_in_epoch)
    callbacks = [StepProgress(progress, losses.last), monitor, resume]
    try:
        with named_divergence(stage, resume):
            lightning_trainer(settings.pretrain.epochs, callbacks).fit(module, loader)
    finally:
        end_workers((loader, val_loader))
    return classifier, monitor.records[-1]


def _for_processes(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings with the learning rate for the global batch."""
    scaling = (settings.lr, settings.batch_size, distributed.world_size(), settings.lr_batch_size)
    logger.info("%s", describe_lr(*scaling))
    lr = scaled_lr(*scaling)
    return settings.model_copy(update={"lr": lr})
