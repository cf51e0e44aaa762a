"""Exact resume of a retraining: mmengine's train loop, from the newest checkpoint on, saving as it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor, nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.randomness import random_state, set_random_state
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.training.coco_evaluation import coco_metrics

logger = logging.getLogger(__name__)

STAGE = "retrain"

OnEvaluation = Callable[[int, dict[str, float]], None]
"""Called with the finished epochs and the metrics of an evaluation."""


class ResumableTrainLoop(EpochBasedTrainLoop):  # type: ignore[misc]
    """mmengine's loop over epochs, which starts where the newest checkpoint was made and evaluates before it, too.

    Saved are parameters and buffers, the optimiser wrapper, all schedulers, the position in the order of pictures, the
    evaluations made so far and the random number generators of every process. Of mmengine's message hub nothing is
    saved: it holds what the log prints. Loaders have no state of their own (:mod:`hitdet_nni.data.sampling`).

    An evaluation is due before training, every ``val_interval`` epochs and after the last one; one that was due and is
    not in the checkpoint is made first.

    Args:
        runner: mmengine's runner.
        dataloader: Loader of training batches, with a :class:`~hitdet_nni.data.sampling.ResumableSampler`.
        max_epochs: Epochs of the training.
        val_interval: Epochs between evaluations.
        checkpoints: Where the state is kept.
        every_steps: Steps between checkpoints besides those of epochs and evaluations; 0 for none.
        start: Says what the initial weights are.

    Attributes:
        evaluations: Finished epochs and metrics of every evaluation so far.
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
        checkpoints: CheckpointFolder,
        every_steps: int,
        start: str,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_interval=val_interval)
        self.checkpoints = checkpoints
        self.every_steps = every_steps
        self.start = start
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self._step = 0  # finished steps of the epoch
        self._pictures: list[int] = []  # ids in the last batch
        self._losses: list[float] = []  # of the epoch's steps, as far as this process has made them

    def run(self) -> nn.Module:
        """Train what is left to train."""
        distributed.broadcast_state(self.runner.model)
        self._restore()
        self._progress = Stage(
            STAGE, self._max_epochs, self.dataloader.sampler.steps, epoch=self._epoch, step=self._step
        )
        self.runner.call_hook("before_train")
        first = self._evaluate_if_due()
        if first:
            self._progress.end_epoch({"mAP": first["mAP"]}, first=True)
        while self._epoch < self._max_epochs:
            self.run_epoch()
            results = {} if not self._losses else {"loss": sum(self._losses) / len(self._losses)}
            metrics = self._evaluate_if_due()
            self._progress.end_epoch({**results, **({"mAP": metrics["mAP"]} if metrics else {})})
        self.runner.call_hook("after_train")
        model: nn.Module = self.runner.model
        return model

    def run_epoch(self) -> None:
        """Make the steps of an epoch that are left."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self._losses.clear()
        for step, batch in enumerate(self.dataloader, self._step):
            self.run_iter(step, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._step = 0
        # Sums of the bits as integers: exact, in whatever order and on whatever device they are made.
        bits = (weight.detach().view(torch.int32).sum() for weight in self.runner.model.parameters())
        distributed.require_equal(bits, "the weights")
        self._save()

    def run_iter(self, idx: int, data_batch: Mapping[str, Any]) -> None:
        """Make a step, and save if it is time."""
        self._pictures = [sample.img_id for sample in data_batch["data_samples"]]
        try:
            super().run_iter(idx, data_batch)
        except FloatingPointError as error:
            raise self._diverged() from error
        self._step = idx + 1
        self._losses.append(float(self.runner.message_hub.get_scalar("train/loss").current()))
        self._progress.step(self._losses[-1])
        # The last step of an epoch is followed by the epoch's own checkpoint.
        if self.every_steps and self._iter % self.every_steps == 0 and self._step < len(self.dataloader):
            self._save()

    def _evaluate_if_due(self) -> dict[str, float] | None:
        """The metrics of the evaluation that was due, if one was."""
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        made = any(epoch == self._epoch for epoch, _ in self.evaluations)
        if self._step or made or not due:
            return None
        self._progress.evaluate()
        metrics = coco_metrics(self.runner.val_loop.run())
        self.evaluations.append((self._epoch, metrics))
        if distributed.is_main():
            self.on_evaluation(self._epoch, metrics)
        self._save()
        return metrics

    def _save(self) -> None:
        model = self.runner.model
        # A finite loss can have gradients that are not; a checkpoint must be one that training can go on from.
        if not torch.stack([weight.isfinite().all() for weight in model.parameters()]).all():
            raise self._diverged()
        # Running statistics are each process's own; only their mean is ever used.
        distributed.average(_running_statistics(model))
        random_states = distributed.gather(random_state())
        if not distributed.is_main():
            return
        self.checkpoints.save(
            self._iter,
            {
                "processes": distributed.processes(),
                "start": self.start,
                "epoch": self._epoch,
                "step": self._step,
                "iteration": self._iter,
                "model": model.state_dict(),
                "optim_wrapper": self.runner.optim_wrapper.state_dict(),
                "schedulers": [scheduler.state_dict() for scheduler in self.runner.param_schedulers],
                "evaluations": self.evaluations,
                "random": random_states,
            },
        )

    def _restore(self) -> None:
        state = distributed.from_main(self.checkpoints.load() if distributed.is_main() else None)
        if state is None:
            return
        for key, now, allowed in (
            ("processes", distributed.processes(), "the same number of processes"),
            ("start", self.start, "the same initial weights"),
        ):
            if state[key] != now:
                raise InputError(
                    f"the checkpoint has {state[key]}, this retraining {now}",
                    source=self.checkpoints.path,
                    key=key,
                    allowed=f"{allowed}, or --force to start again",
                )
        self.runner.model.load_state_dict(state["model"])
        self.runner.optim_wrapper.load_state_dict(state["optim_wrapper"])
        for scheduler, saved in zip(self.runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.evaluations = list(state["evaluations"])
        self._epoch, self._step, self._iter = state["epoch"], state["step"], state["iteration"]
        logger.info("%s: going on after step %d of epoch %d", STAGE, self._step, self._epoch + 1)
        self.dataloader.sampler.start_at(self._epoch, self._step)
        set_random_state(state["random"][distributed.rank()])

    def _diverged(self) -> NonFiniteLossError:
        files = self.checkpoints.files()
        return NonFiniteLossError(STAGE, self._iter, self._pictures, files[-1] if files else None)


def _running_statistics(model: nn.Module) -> list[Tensor]:
    normalisations = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    return [
        statistic
        for part in normalisations
        for statistic in (part.running_mean, part.running_var)
        if statistic is not None
    ]
