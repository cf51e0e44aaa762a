"""What NNI's one-shot strategies train: the detection loss of a detector space, and its watcher."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from hitdet_nni.engine import distributed
from hitdet_nni.engine.lightning_resume import ExactResume
from hitdet_nni.engine.randomness import own_random_numbers
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.search.expected_cost import ExpectedCost
from hitdet_nni.search.health.evidence import Evidence, Exchange, detector_losses, held_out_losses, remembered_parts
from hitdet_nni.search.health.stats import Health, examine
from hitdet_nni.search.one_shot import refuse_unsupported
from hitdet_nni.search.strategy import ColumnSparseLightningModule


@dataclass(frozen=True)
class WeightOptimizer:
    """SGD with linear warm-up and a cosine schedule over the whole training (section 4.2)."""

    lr: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_iterations: int = 0

    def factor(self, iteration: int, iterations: int) -> float:
        """Learning rate of an iteration relative to ``lr``."""
        warmup = min(1.0, (iteration + 1) / (self.warmup_iterations + 1))
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / iterations)))


def detection_loss(detector: Any, batch: dict[str, Any]) -> Tensor:
    """The sum of a detector's losses on a batch.

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


class EpochLosses:
    """The losses of the running epoch's batches."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def last(self) -> float:
        """The loss of the last batch."""
        return self.values[-1]

    def take_mean(self) -> float:
        """Their mean over all processes; the next epoch starts with none."""
        values, self.values = self.values, []
        return distributed.mean(sum(values) / len(values))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint within the epoch needs."""
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.values = list(state["values"])


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
        """Refuse strategies that would search wrongly without a word; have pictures go where the detector will be."""
        refuse_unsupported(self.trainer.lightning_module)
        # Lightning moves the tensors of the preprocessor, but only its own `to` tells it where pictures are to go.
        self.model.detector.data_preprocessor.to(self.trainer.strategy.root_device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The detection loss of a batch, a scalar.

        Raises:
            NonFiniteLossError: If it is NaN or infinite.
        """
        loss = detection_loss(self.model.detector, batch)
        self.losses.values.append(self._finite(loss, batch))
        return loss

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The detection loss of a batch without gradients, a scalar, logged as ``val_loss``.

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
        """SGD over all parameters; the strategy takes the architecture parameters out of it."""
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


@dataclass(frozen=True)
class EpochRecord:
    """What is watched at the end of an epoch of screening or search.

    Attributes:
        epoch: The epoch, from 0.
        train_loss: Mean loss of the epoch's batches (both phases).
        val_loss: Mean loss of the validation pictures.
        cost_weight: lambda of Eq. 6: as it was set, or where a budget has brought it.
        health: Entropies, costs, changes and gradients of the architecture parameters.
        probabilities: Weight of every candidate in the race, by label.
        alphas: Architecture parameter of every candidate in the race, by label.
        scores: Score of every operator in the race, by component, before this epoch's removals.
        seconds: Wall time of the epoch.
    """

    epoch: int
    train_loss: float
    val_loss: float
    cost_weight: float
    health: Health
    probabilities: dict[str, dict[str, float]] = field(repr=False)
    alphas: dict[str, dict[str, float]] = field(repr=False)
    scores: dict[str, dict[str, float]] = field(repr=False)
    seconds: float = 0.0

    @property
    def expected_gflops(self) -> float:
        """Expected cost under the architecture parameters (Eq. 7)."""
        return self.health.expected_gflops

    @property
    def entropy(self) -> dict[str, float]:
        """Mean entropy of each searched component's probabilities, 1 for uniform, 0 for decided."""
        return self.health.entropy

    def metrics(self) -> dict[str, float]:
        """The numbers for a table or a plot, flat."""
        return {
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "gflops": self.expected_gflops,
            "cost_weight": self.cost_weight,
            **self.health.metrics(),
            "seconds": self.seconds,
        }


class EpochWatcher(pl.Callback):  # type: ignore[misc]
    """Evaluates the supernet at the end of every epoch and hands the record on.

    Args:
        val_loader: Validation batches of this process.
        cost: Expected cost of the space.
        losses: The losses of the running epoch.
        on_epoch: Called with each record, by the main process.
        seed: Seed of the sampling of RoIs in the validation loss, so that epochs can be compared.
    """

    def __init__(
        self,
        val_loader: Any,
        cost: ExpectedCost,
        losses: EpochLosses,
        on_epoch: Callable[[EpochRecord], None],
        seed: int,
    ) -> None:
        self.val_loader = val_loader
        self.cost = cost
        self.losses = losses
        self.on_epoch = on_epoch
        self.seed = seed
        self.records: list[EpochRecord] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: ColumnSparseLightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: ColumnSparseLightningModule) -> None:
        """Record the epoch, before the strategy removes operators."""
        distributed.average(pl_module.buffers())  # batch normalisation's, before they are used
        layers = pl_module.mixed_layers()
        val_loss, evidence = self._held_out(pl_module)
        norms = pl_module.gradient_norms.take_means()
        previous = self.records[-1].health if self.records else None
        multiplier = pl_module.multiplier
        record = EpochRecord(
            epoch=trainer.current_epoch,
            train_loss=self.losses.take_mean(),
            val_loss=val_loss,
            cost_weight=pl_module.flops_weight if multiplier is None else multiplier.weight,
            health=examine(trainer.current_epoch, layers, pl_module.export(), self.cost, norms, evidence, previous),
            probabilities={
                label: dict(zip(layer.active_names, layer.probabilities().tolist(), strict=True))
                for label, layer in layers.items()
            },
            alphas={
                label: dict(zip(layer.active_names, layer.active_alpha().tolist(), strict=True))
                for label, layer in layers.items()
            },
            scores=pl_module.scores(),
            seconds=time.monotonic() - self._started,
        )
        self.records.append(record)
        if distributed.is_main():
            self.on_epoch(record)

    def state_dict(self) -> dict[str, Any]:
        """The records so far, as plain values."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the records of a checkpoint."""
        self.records = [
            EpochRecord(**{**record, "health": Health.restore(record["health"])}) for record in state_dict["records"]
        ]

    @torch.no_grad()
    def _held_out(self, pl_module: ColumnSparseLightningModule) -> tuple[float, dict[Exchange, Evidence]]:
        """Mean loss of the validation pictures of all processes, and what it owes to their annotations."""
        detector = pl_module.model.detector
        detector.eval()
        # The loss samples RoIs; doing so from a stream of its own leaves the training's random numbers alone.
        with own_random_numbers(self.seed), pl_module.precision.autocast(), remembered_parts(detector):
            losses = partial(detector_losses, detector)
            found = held_out_losses(losses, self.val_loader, get_args(Exchange), self.seed)
        detector.train()
        parts = distributed.gather(found)
        own = [loss for losses, _ in parts for loss in losses]
        evidence = {
            kind: Evidence.of(kind, [row for _, differences in parts for row in differences[kind]], self.seed)
            for kind in get_args(Exchange)
        }
        return sum(own) / len(own), evidence


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
    """An NNI evaluator that trains a :class:`~hitdet_nni.model.detector.HitDetectorSpace` one-shot.

    Args:
        weights_loader: Batches that train the weights.
        alphas_loader: Batches that train the architecture parameters.
        optimizer: SGD's settings.
        epochs: Epochs of the training.
        callbacks: Lightning callbacks, e.g. an :class:`EpochWatcher`.
        losses: Takes the losses of each epoch; an :class:`EpochWatcher` of the training needs the same.
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
