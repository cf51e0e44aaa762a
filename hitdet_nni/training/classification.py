"""Training a classifier with Lightning: its steps, and what is measured after every epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.plugins.environments import LightningEnvironment

from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.data.datasets.classification import Batch, sound
from hitdet_nni.data.images.reading import ImageDefect
from hitdet_nni.engine import distributed
from hitdet_nni.engine.epoch_losses import EpochLosses
from hitdet_nni.engine.lightning_resume import ExactResume
from hitdet_nni.engine.optimizers import WeightOptimizer
from hitdet_nni.engine.precision import Precision
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.model.classifier import HitClassifier
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, scale_candidate_gradients
from hitdet_nni.nas.strategy import CandidateGradients


@dataclass(frozen=True)
class EpochAccuracy:
    """What is measured at the end of an epoch.

    Attributes:
        epoch: The epoch, from 0.
        train_loss: Mean loss of its batches.
        val_top1: Share of the validation images whose class has the largest logit.
        val_top5: Share of those whose class is among the five largest (or all, where there are fewer classes).
    """

    epoch: int
    train_loss: float
    val_top1: float
    val_top5: float


class AccuracyMonitor(pl.Callback):  # type: ignore[misc]
    """Measures the classifier on the validation images at the end of every epoch.

    Args:
        val_loader: Validation batches of this process.
        losses: The losses of the running epoch.
        on_epoch: Called by the main process with the records of all epochs so far.
    """

    def __init__(self, val_loader: Any, losses: EpochLosses, on_epoch: Callable[[list[EpochAccuracy]], None]) -> None:
        self.val_loader = val_loader
        self.losses = losses
        self.on_epoch = on_epoch
        self.records: list[EpochAccuracy] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: ClassificationModule) -> None:
        """Add the epoch's record."""
        distributed.average(pl_module.buffers())  # batch normalisation's, before they are used
        top1, top5 = self._accuracy(pl_module)
        self.records.append(EpochAccuracy(trainer.current_epoch, self.losses.take_mean(), top1, top5))
        if distributed.is_main():
            self.on_epoch(self.records)

    @torch.no_grad()
    def _accuracy(self, pl_module: ClassificationModule) -> tuple[float, float]:
        pl_module.eval()
        hits = torch.zeros(3, dtype=torch.int64)  # images, hits among one and among five
        for batch in self.val_loader:
            images, labels, _ = (part.to(pl_module.device) for part in sound(batch))
            with pl_module.precision.autocast():
                logits = pl_module.classifier(images)
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            hits += torch.tensor([len(labels), int(ranked[:, 0].sum()), int(ranked.sum())])
        pl_module.train()
        count, first, five = (sum(column) for column in zip(*distributed.gather(hits.tolist()), strict=True))
        return first / count, five / count

    def state_dict(self) -> dict[str, Any]:
        """Return the records so far, as plain values."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the records of a checkpoint."""
        self.records = [EpochAccuracy(**record) for record in state_dict["records"]]


class ClassificationModule(pl.LightningModule):  # type: ignore[misc]
    """Lightning module of a classifier: smoothed cross entropy, SGD with a cosine schedule.

    Args:
        classifier: What is trained; its architecture parameters, if any, require no gradient.
        settings: Learning rate for this number of processes, momentum, decay, warm-up, clipping and label smoothing.
        files: Path of every training image, for messages.
        iterations: Steps of the whole training, the length of the cosine.
        precision: What losses and gradients are computed in.
        losses: Takes the losses of the epoch.
        resume: Knows the position in the training and its checkpoints.
        stage: What the training is called in messages.
        candidate_gradients: What the weights of candidates learn from, as in a search.
    """

    def __init__(
        self,
        classifier: HitClassifier,
        settings: PretrainSettings,
        files: tuple[str, ...],
        iterations: int,
        precision: Precision,
        losses: EpochLosses,
        resume: ExactResume,
        stage: str,
        candidate_gradients: CandidateGradients = "weighted",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # gradients are averaged over processes between backward and step
        self.classifier = classifier
        self.settings = settings
        self.files = files
        self.iterations = iterations
        self.precision = precision
        self.losses = losses
        self.resume = resume
        self.stage = stage
        layers = (layer for layer in classifier.modules() if isinstance(layer, ColumnSparseMixedLayer))
        self._scaled = list(layers) if candidate_gradients == "full" else []

    def on_train_start(self) -> None:
        """Let all processes start from the same parameters."""
        distributed.broadcast_state(self)

    def on_before_batch_transfer(self, batch: Batch | ImageDefect, dataloader_idx: int) -> Batch:
        """Refuse a batch with an image that cannot be read.

        Raises:
            InputError: Naming the file.
        """
        return sound(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make a step of SGD.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite in any process.
        """
        images, labels, numbers = batch
        with self.precision.autocast():
            logits = self.classifier(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        mean = loss.detach().clone()
        distributed.average([mean])
        if not math.isfinite(mean):
            files = [self.files[int(number)] for number in numbers]
            raise NonFiniteLossError(self.stage, self.resume.steps, files, self.resume.newest())
        self.losses.values.append(float(mean))
        optimizer = self.optimizers(use_pl_optimizer=False)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.precision.backward(loss, self.manual_backward)
        distributed.average_gradients(parameters)
        scale_candidate_gradients(self._scaled)
        self.precision.step(optimizer, parameters, self.settings.grad_clip)
        optimizer.zero_grad()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> dict[str, Any]:
        """Return SGD over what requires gradients, and its schedule."""
        settings = self.settings
        schedule = WeightOptimizer(settings.lr, settings.momentum, settings.weight_decay, settings.warmup_iterations)
        sgd = torch.optim.SGD(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )
        factor = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: schedule.factor(step, self.iterations))
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


def lightning_trainer(epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Build a trainer of this process alone, which leaves files, logs and other processes to us."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its hints speak of an API that is not the user's
    device = distributed.device()
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index],
        plugins=[LightningEnvironment()],  # processes are ours to connect, whatever the environment says
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
