"""Exact resume of a training with mmengine: a train loop that saves, restores and evaluates."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.moving_average import MovingAverage
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.training_state import Position, TrainingCheckpoints, TrainingObjects
from hitdet_nni.errors import NonFiniteLossError

logger = logging.getLogger(__name__)

LOOP = "loop"
"""Name of the loop's own state in a checkpoint."""

OnEvaluation = Callable[[int, dict[str, float]], None]
"""Called with the finished epochs and the metrics of an evaluation."""


class ResumableTrainLoop(EpochBasedTrainLoop):  # type: ignore[misc]
    """mmengine's loop over epochs, which starts where the newest checkpoint was made and evaluates before it, too.

    Saved is what :class:`~hitdet_nni.engine.training_state.TrainingCheckpoints` says, the evaluations made so far among
    it. Of mmengine's message hub nothing is saved: it holds what the log prints.

    An evaluation is due before training, every ``val_interval`` epochs and after the last one; one that was due and is
    not in the checkpoint is made first. A training that pauses leaves those before it and at its pause to whoever goes
    on to the end: most never do, and nobody reads theirs. With a patience they decide, and are made in their time.

    Args:
        runner: mmengine's runner.
        dataloader: Loader of training batches, with a :class:`~hitdet_nni.data.sampling.ResumableSampler`.
        max_epochs: Epochs of the training.
        val_interval: Epochs between evaluations.
        stage: What is trained, for messages.
        metrics: Makes metrics, ``mAP`` among them, of what mmengine's evaluation returns.
        checkpoints: Where the state is kept.
        every_steps: Steps between checkpoints besides those of epochs and evaluations; 0 for none.
        start: Says what the initial weights are; a checkpoint that started from others is refused.
        images: Tells the training images from others, and is asked for in the same way.
        average: Share of each step's weights in a moving average, which is evaluated in their place; ``None``: none.
        patience: Evaluations without a better mAP after which the training ends; ``None``: all epochs.
        until: Epochs after which it pauses, to be gone on with from its checkpoint; ``None``: all epochs.

    Attributes:
        evaluations: Finished epochs and metrics of every evaluation so far.
        losses: Mean training loss of each finished epoch, of the images of this process.
        on_evaluation: Called with each evaluation as it is made, in the main process.

    Raises:
        InputError: If the checkpoint was made by another number of processes, or started from other weights.
        NonFiniteLossError: If the loss or a parameter becomes NaN or infinite.
    """

    on_evaluation: OnEvaluation

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_epochs: int,
        val_interval: int,
        *,
        stage: str,
        metrics: Callable[[Mapping[str, float]], dict[str, float]],
        checkpoints: CheckpointFolder,
        every_steps: int,
        start: str,
        images: str,
        average: float | None = None,
        patience: int | None = None,
        until: int | None = None,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_interval=val_interval)
        self.stage = stage
        self.metrics = metrics
        self.checkpoints = TrainingCheckpoints(checkpoints, every_steps, start=start, images=images)
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.patience = patience
        self.until = max_epochs if until is None else min(until, max_epochs)
        self._left_to_others = {0, self.until} if self.until < max_epochs and patience is None else set()
        self._average_share = average
        self._average: MovingAverage | None = None
        self._step = 0  # finished steps of the epoch
        self._images: list[int] = []  # ids in the last batch
        self.losses: list[float] = []
        self._step_losses: list[float] = []  # of the running epoch's finished steps

    def state_dict(self) -> dict[str, Any]:
        """Return the evaluations made, and the losses, so far."""
        return {"evaluations": self.evaluations, "losses": self.losses, "step_losses": self._step_losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state_dict` returned."""
        self.evaluations = list(state["evaluations"])
        self.losses, self._step_losses = list(state["losses"]), list(state["step_losses"])

    def run(self) -> nn.Module:
        """Train what is left to train."""
        distributed.broadcast_state(self.runner.model)
        if self._average_share is not None:
            self._average = MovingAverage(self.runner.model, self._average_share)
        self._restore()
        self._progress = Stage(
            self.stage, self.until, self.dataloader.sampler.steps, epoch=self._epoch, step=self._step
        )
        self.runner.call_hook("before_train")
        first = self._evaluate_if_due()
        if first:
            self._progress.end_epoch({"mAP": first["mAP"]}, first=True)
        while self._epoch < self.until and not self._without_progress():
            self.run_epoch()
            metrics = self._evaluate_if_due()
            results = {"loss": self.losses[-1], **({"mAP": metrics["mAP"]} if metrics else {})}
            self._progress.end_epoch(results, last=self._without_progress())
        if self._average is not None:
            self._average.give_to(self.runner.model)
        self.runner.call_hook("after_train")
        model: nn.Module = self.runner.model
        return model

    def run_epoch(self) -> None:
        """Make the steps of an epoch that are left."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for step, batch in enumerate(self.dataloader, self._step):
            self.run_iter(step, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._step = 0
        self.losses.append(statistics.fmean(self._step_losses))
        self._step_losses = []
        # Sums of the bits as integers: exact, in whatever order and on whatever device they are made.
        bits = (weight.detach().view(torch.int32).sum() for weight in self.runner.model.parameters())
        distributed.require_equal(bits, "the weights")
        self._save()

    def run_iter(self, idx: int, data_batch: Mapping[str, Any]) -> None:
        """Make a step, and save if it is time."""
        self._images = [sample.img_id for sample in data_batch["data_samples"]]
        try:
            super().run_iter(idx, data_batch)
        except FloatingPointError as error:
            raise self._diverged() from error
        self._step = idx + 1
        if self._average is not None:
            self._average.update(self.runner.model)
        self._step_losses.append(float(self.runner.message_hub.get_scalar("train/loss").current()))
        self._progress.step(self._step_losses[-1])
        # The last step of an epoch is followed by the epoch's own checkpoint.
        if self._step < len(self.dataloader) and self.checkpoints.is_due(self._iter):
            self._save()

    def _evaluate_if_due(self) -> dict[str, float] | None:
        """Return the metrics of the evaluation that was due, if one was."""
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        made = any(epoch == self._epoch for epoch, _ in self.evaluations)
        if self._step or made or not due or self._epoch in self._left_to_others:
            return None
        self._progress.evaluate()
        with nullcontext() if self._average is None else self._average.in_place_of(self.runner.model):
            metrics = self._evaluate()
        self.evaluations.append((self._epoch, metrics))
        self._save()
        return metrics

    def _evaluate(self) -> dict[str, float]:
        metrics = self.metrics(self.runner.val_loop.run())
        if distributed.is_main():
            self.on_evaluation(self._epoch, metrics)
        return metrics

    def _without_progress(self) -> bool:
        """Whether the last evaluations, as many as the patience is, have brought no better mAP than those before.

        A training that has found nothing yet goes on.
        """
        found = [metrics["mAP"] for _, metrics in self.evaluations]
        if self.patience is None or self._step or len(found) <= self.patience:
            return False
        best = max(found[: -self.patience])
        ended = best > 0 and max(found[-self.patience :]) <= best
        if ended:
            logger.info(
                "%s: no better mAP in %d evaluations, ends after epoch %d", self.stage, self.patience, self._epoch
            )
        return ended

    def _save(self) -> None:
        if not self.checkpoints.save(Position(self._epoch, self._step, self._iter), self._objects()):
            raise self._diverged()

    def _restore(self) -> None:
        saved = self.checkpoints.load()
        if saved is None:
            return
        left_out = 0 not in self._left_to_others and all(epoch for epoch, _ in saved.part(LOOP)["evaluations"])
        before = [(0, self._evaluate())] if left_out else []  # by the initial weights, which are still there
        saved.restore(self._objects())
        self.evaluations = before + self.evaluations
        position = saved.position
        self._epoch, self._step, self._iter = position.epoch, position.step_in_epoch, position.steps
        self.dataloader.sampler.start_at(self._epoch, self._step)
        saved.restore_random()

    def _objects(self) -> TrainingObjects:
        runner = self.runner
        shared = {} if self._average is None else {"average": self._average}
        return TrainingObjects(runner.model, [runner.optim_wrapper], runner.param_schedulers, {LOOP: self}, shared)

    def _diverged(self) -> NonFiniteLossError:
        return NonFiniteLossError(self.stage, self._iter, self._images, self.checkpoints.newest())
