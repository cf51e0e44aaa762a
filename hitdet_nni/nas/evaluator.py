"""What NNI's one-shot strategies train: the detection loss of a detector space."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from hitdet_nni.engine import distributed
from hitdet_nni.engine.epoch_losses import EpochLosses
from hitdet_nni.engine.lightning_resume import ExactResume
from hitdet_nni.engine.optimizers import WeightOptimizer
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.nas.one_shot import refuse_unsupported


def detection_loss(detector: Any, batch: dict[str, Any]) -> Tensor:
    """Return the sum of a detector's losses on a batch.

    Args:
        detector: An mmdet detector.
        batch: ``inputs`` (list of N tensors ``[3, H, W]``) and ``data_samples`` (list of N ``DetDataSample``).

    Returns:
        A scalar: RPN classification and localisation plus head classification and localisation.

    Source:
        Section 3.4.
    """
    data = detector.data_preprocessor(batch, detector.training)
    losses = detector(data["inputs"], data["data_samples"], mode="loss")
    total: Tensor = detector.parse_losses(losses)[0]
    return total


class DetectionModule(LightningModule):  # type: ignore[misc]
    """Lightning module of a detector space: the detection loss, and SGD over the weights.

    Args:
        optimizer: SGD's settings.
        iterations: Steps of the whole training, the length of the cosine.
        losses: Takes the losses of both phases.
        stage: What is trained, for messages.
        resume: Knows the position in the training and its checkpoints, where there are any.
    """

    def __init__(
        self,
        optimizer: WeightOptimizer,
        iterations: int,
        losses: EpochLosses,
        stage: str = "search",
        resume: ExactResume | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.iterations = iterations
        self.losses = losses
        self.stage = stage
        self.resume = resume

    def setup(self, stage: str) -> None:
        """Refuse what would be searched wrongly without a word; have images go where the detector will be.

        Raises:
            InputError: For a strategy that cannot search a detector space, or a space that is no detector's.
        """
        refuse_unsupported(self.trainer.lightning_module)
        if not hasattr(self.model, "detector"):
            allowed = "a HitDetectorSpace; other spaces have Lightning evaluators of their own"
            raise InputError(f"got a {type(self.model).__name__}", source="detection_evaluator", allowed=allowed)
        # Lightning moves the tensors of the preprocessor, but only its own `to` tells it where images are to go.
        self.model.detector.data_preprocessor.to(self.trainer.strategy.root_device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the detection loss of a batch, a scalar.

        Raises:
            NonFiniteLossError: If it is NaN or infinite.
        """
        loss = detection_loss(self.model.detector, batch)
        self.losses.values.append(self._finite(loss, batch))
        return loss

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the detection loss of a batch without gradients, a scalar, and log it as ``val_loss``.

        Strategies that sample paths judge them by it.

        Raises:
            NonFiniteLossError: If it is NaN or infinite.
        """
        loss = detection_loss(self.model.detector, batch)
        self._finite(loss, batch)
        self.log("val_loss", loss, batch_size=len(batch["inputs"]))
        return loss

    def _finite(self, loss: Tensor, batch: dict[str, Any]) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            step, checkpoint = (0, None) if self.resume is None else (self.resume.steps, self.resume.newest())
            raise NonFiniteLossError(self.stage, step, (data.img_id for data in batch["data_samples"]), checkpoint)
        return value

    def configure_optimizers(self) -> dict[str, Any]:
        """Build SGD over all parameters; the strategy takes the architecture parameters out of it."""
        settings = self.optimizer
        sgd = torch.optim.SGD(
            self.parameters(),
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=True,  # a few calls for hundreds of small tensors; "fused" fails where a path has no gradient yet
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: settings.factor(step, self.iterations))
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def detection_evaluator(
    weights_loader: Any,
    alphas_loader: Any,
    optimizer: WeightOptimizer,
    *,
    epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    losses: EpochLosses | None = None,
    stage: str = "search",
    resume: ExactResume | None = None,
) -> Any:
    """Build an NNI evaluator that trains a :class:`~hitdet_nni.model.detector.HitDetectorSpace` one-shot.

    Args:
        weights_loader: Batches that train the weights.
        alphas_loader: Batches that train the architecture parameters.
        optimizer: SGD's settings.
        epochs: Epochs of the training.
        callbacks: Lightning callbacks, e.g. an :class:`~hitdet_nni.nas.epoch_watcher.SearchMonitor`.
        losses: Takes the losses of each epoch; an epoch watcher of the training needs the same.
        stage: What is trained, for messages.
        resume: Saves checkpoints, and has the training start at one.
    """
    # Lightning's hints and banners speak of its own API, which is not the user's.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1 if distributed.device().type == "cpu" else [distributed.device().index],
        plugins=[LightningEnvironment()],  # processes are ours to connect, whatever the environment says
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=resume is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, *([] if resume is None else [resume])],
    )
    iterations = epochs * max(1, len(weights_loader))
    module = DetectionModule(optimizer, iterations, losses or EpochLosses(), stage, resume)
    return Lightning(module, trainer, train_dataloaders=weights_loader, val_dataloaders=alphas_loader)
