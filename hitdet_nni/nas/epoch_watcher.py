"""What is measured at the end of every epoch of a supernet's training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import pytorch_lightning as pl
import torch

from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.engine import distributed
from hitdet_nni.engine.epoch_losses import EpochLosses
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.health.permutation_test import (
    Permutation,
    PermutationResult,
    detector_losses,
    held_out_losses,
    remembered_parts,
)
from hitdet_nni.nas.health.stats import SearchStats, collect_stats
from hitdet_nni.nas.strategy import ColumnSparseLightningModule


class SearchMonitor(pl.Callback):  # type: ignore[misc]
    """Evaluates the supernet at the end of every epoch and hands the record on.

    Args:
        val_loader: Validation batches of this process.
        costs: Costs of the space, in GFLOPs.
        losses: The losses of the running epoch.
        on_epoch: Called with each record, by the main process.
        seed: Seed of the sampling of RoIs in the validation loss, so that epochs can be compared.
    """

    def __init__(
        self,
        val_loader: Any,
        costs: CostTable,
        losses: EpochLosses,
        on_epoch: Callable[[EpochRecord], None],
        seed: int,
    ) -> None:
        self.val_loader = val_loader
        self.costs = costs
        self.losses = losses
        self.on_epoch = on_epoch
        self.seed = seed
        self.records: list[EpochRecord] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: ColumnSparseLightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: ColumnSparseLightningModule) -> None:
        """Record the epoch, before the strategy removes operators.

        Raises:
            FloatingPointError: If the loss of the validation images is NaN or infinite.
        """
        distributed.average(pl_module.buffers())  # batch normalisation's, before they are used
        layers = pl_module.mixed_layers()
        val_loss, evidence = self._held_out(pl_module)
        if not math.isfinite(val_loss):
            raise FloatingPointError("the loss of the validation images is not finite")
        norms = pl_module.gradient_norms.take_means()
        previous = self.records[-1].health if self.records else None
        record = EpochRecord(
            epoch=trainer.current_epoch,
            train_loss=self.losses.take_mean(),
            val_loss=val_loss,
            cost_weight=pl_module.cost.weight,
            health=collect_stats(
                trainer.current_epoch, layers, pl_module.export(), self.costs, norms, evidence, previous
            ),
            probabilities={
                label: dict(zip(layer.active_names, layer.probabilities().tolist(), strict=True))
                for label, layer in layers.items()
            },
            alphas=pl_module.alphas(),
            scores=pl_module.scores(),
            seconds=time.monotonic() - self._started,
        )
        self.records.append(record)
        if distributed.is_main():
            self.on_epoch(record)

    def state_dict(self) -> dict[str, Any]:
        """Return the records so far, as plain values."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the records of a checkpoint."""
        self.records = [
            EpochRecord(**{**record, "health": SearchStats.restore(record["health"])})
            for record in state_dict["records"]
        ]

    @torch.no_grad()
    def _held_out(self, pl_module: ColumnSparseLightningModule) -> tuple[float, dict[Permutation, PermutationResult]]:
        """Return the mean loss of all processes' validation images, and what it owes to their annotations."""
        detector = pl_module.model.detector
        detector.eval()
        # The loss samples RoIs; doing so from a stream of its own leaves the training's random numbers alone.
        with fork_rng(self.seed), pl_module.precision.autocast(), remembered_parts(detector):
            losses = partial(detector_losses, detector)
            found = held_out_losses(losses, self.val_loader, get_args(Permutation), self.seed)
        detector.train()
        parts = distributed.gather(found)
        own = [loss for losses, _ in parts for loss in losses]
        evidence = {
            kind: PermutationResult.of(kind, [row for _, differences in parts for row in differences[kind]], self.seed)
            for kind in get_args(Permutation)
        }
        return sum(own) / len(own), evidence
