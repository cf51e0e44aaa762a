"""NNI's other one-shot strategies: what is refused, paths that a seed decides, and ENAS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nni.mutable.annotation import Constraint
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule, GumbelDartsLightningModule
from nni.nas.oneshot.pytorch.sampling import EnasLightningModule, RandomSamplingLightningModule, has_tianshou
from nni.nas.strategy import ENAS, RandomOneShot
from numpy.random import RandomState
from torch import Tensor, randint

from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.nas.one_shot_checks import refuse_penalty
from hitdet_nni.nas.strategy import ColumnSparseLightningModule

ENAS_REQUIREMENTS = ("tianshou==0.4.11", "gym==0.26.2")
"""What NNI's controller needs besides NNI; its code fits no later release of either."""

MOST_DRAWS = 1000
"""Paths drawn in search of one that a space's constraints allow."""

Reward = Callable[[float, Mapping[str, str]], float]
"""Reward of a path by the detection loss of a batch and the path's operator names by label."""


def refuse_unsupported(module: Any) -> None:
    """Refuse what would search a detector space wrongly without a word.

    Args:
        module: What Lightning trains: the one-shot strategy's module around the evaluator's.

    Raises:
        InputError: Naming the strategy and what to take instead.
    """
    if not isinstance(module, BaseOneShotLightningModule):
        raise InputError(
            "a multi-trial strategy would train every model and learn nothing of it",
            source="detection_evaluator",
            allowed="a one-shot strategy; for the others "
            "FunctionalEvaluator(hitdet_nni.integration.multi_trial.retrain_sample)",
        )
    name = type(module).__name__
    if not any(True for _ in module.supernet_modules()):
        raise InputError("every component is fixed at one operator", source=name, allowed="something to search")
    if isinstance(module, EnasLightningModule) and not isinstance(module, ControllerModule):
        raise InputError(
            "NNI's ENAS forgets its controller before it exports", source=name, allowed="ControllerENAS of one_shot"
        )
    if isinstance(module, DartsLightningModule) and module.penalty is not None:
        refuse_penalty(name)
    if isinstance(module, GumbelDartsLightningModule) and module.temperature_scheduler.init <= 0:
        raise InputError(
            f"got {module.temperature_scheduler.init}", source=name, key="temperature", allowed="a positive number"
        )
    if distributed.world_size() > 1 and not isinstance(module, ColumnSparseLightningModule):
        raise InputError(
            f"{distributed.world_size()} processes would train a supernet each",
            source=name,
            allowed="one process; ColumnSparseDARTS for several",
        )


class SeededPathsModule(RandomSamplingLightningModule):  # type: ignore[misc]
    """The training of :class:`SeededRandomOneShot`: every path is drawn before NNI's modules are asked for theirs."""

    def resample(self) -> dict[str, Any]:
        """Draw a path that the filter lets pass, and have all modules take it."""
        path: dict[str, Any] = self._repeat_until_valid(self._draw)
        for module in self.supernet_modules():
            module.resample(memo=path)
        return path

    def export(self) -> dict[str, Any]:
        """Draw a path: none is better than another to this strategy."""
        return self._draw()

    def _draw(self) -> dict[str, Any]:
        """Draw every choice, and once more until the space's constraints hold."""
        random = RandomState(int(randint(2**31, ())))
        mutables = sorted(self.model.simplify().items())
        constraints = [each for _, each in mutables if isinstance(each, Constraint)]
        for _ in range(MOST_DRAWS):
            path = {
                label: each.random(random_state=random) for label, each in mutables if not isinstance(each, Constraint)
            }
            if all(constraint.check_contains(path) is None for constraint in constraints):
                return path
        problem = f"none of {MOST_DRAWS} paths keeps the constraints of the space"
        raise InputError(problem, source="SeededRandomOneShot", allowed="constraints that more paths keep")


class SeededRandomOneShot(RandomOneShot):  # type: ignore[misc]
    """NNI's RandomOneShot, but drawing from torch's generator, so that a seed decides the paths.

    NNI seeds each draw anew from the operating system.
    """

    def configure_oneshot_module(self, training_module: Any) -> SeededPathsModule:
        """Wrap the evaluator's Lightning module."""
        return SeededPathsModule(training_module, filter=self.filter)


def negative_loss(loss: float, sample: Mapping[str, str]) -> float:
    """Return the negative loss, the default :data:`Reward`: a lower loss is better, whatever the path is."""
    return -loss


class PhasedLoader:
    """The weights' batches, then the controller's; each with whether it is for the weights.

    Args:
        weights: Batches that train the weights.
        rewards: Batches on which paths are judged.
    """

    def __init__(self, weights: Any, rewards: Any) -> None:
        self.weights = weights
        self.rewards = rewards

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.weights) + len(self.rewards)

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """Yield the batches of one epoch."""
        yield from ((batch, True) for batch in self.weights)
        yield from ((batch, False) for batch in self.rewards)


class ControllerModule(EnasLightningModule):  # type: ignore[misc]
    """The training step of :class:`ControllerENAS`.

    Args:
        training_module: The evaluator's Lightning module, a ``DetectionModule``.
        reward: Reward of a path.
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        kwargs: Arguments of NNI's ``EnasLightningModule``.
    """

    def __init__(self, training_module: Any, reward: Reward, gradient_clip_val: float | None, **kwargs: Any) -> None:
        super().__init__(training_module, reward_metric_name="val_loss", **kwargs)
        self.reward = reward
        self.gradient_clip_val = gradient_clip_val

    def set_model(self, model: ModelSpace) -> None:
        """Set the supernet, and make a controller for it unless there is one.

        NNI sets the model once more before it exports; a new controller would know nothing.

        Raises:
            InputError: If there is nothing to search.
        """
        if not model.simplify():
            raise InputError("every component is fixed at one operator", source="ENAS", allowed="something to search")
        if self._generator is None:
            super().set_model(model)
        else:
            self.training_module.set_model(model)

    def training_step(self, batch: tuple[Any, bool], batch_idx: int) -> Tensor | None:
        """Train the weights of a path, or judge a path and, every so many paths, update the controller.

        Args:
            batch: A batch, and whether it is for the weights.
            batch_idx: Number of the batch in its epoch.

        Returns:
            The loss of the batch, a scalar; none in warm-up epochs where the batch is the controller's.
        """
        images, for_weights = batch
        if for_weights:
            return self._train_path(images, batch_idx)
        if self.trainer.current_epoch < self.warmup_epochs:
            return None
        return self._judge_path(images, batch_idx)

    def _train_path(self, images: Any, batch_idx: int) -> Tensor:
        self.policy.eval()
        self.resample()
        loss: Tensor = self.training_module.training_step(images, batch_idx)
        self.advance_optimization(loss, batch_idx, self.gradient_clip_val)
        # Not after the controller's batches, as NNI does: the rate would be at its end half-way.
        self.advance_lr_schedulers(batch_idx)
        return loss

    def _judge_path(self, images: Any, batch_idx: int) -> Tensor:
        self.policy.train()
        sample = self.resample()
        loss: Tensor | None = self.training_module.validation_step(images, batch_idx)
        if loss is None:
            name = type(self.training_module).__name__
            raise InputError("returns nothing, so no path can be judged", source=name, key="validation_step")
        self._replay_buffer.update(self.generator.send_reward(self.reward(float(loss), sample)))
        self._trajectory_counter += 1
        if self._trajectory_counter % self.batches_per_update == 0:
            for _ in range(self.update_kwargs.get("update_times", 1)):
                self.policy.update(0, self._replay_buffer, **self.update_kwargs)
        return loss

    def export(self) -> dict[str, str]:
        """Return the controller's most probable decision of each layer, given those before it; NNI's draws."""
        self.policy.eval()
        draws, self.policy._deterministic_eval = self.policy._deterministic_eval, True
        sample = self.resample()
        self.policy._deterministic_eval = draws
        return dict(sample)


class ControllerENAS(ENAS):  # type: ignore[misc]
    """NNI's ENAS, mended for detector spaces; its evaluator is ``detection_evaluator``'s.

    NNI 3.0's own does not run on Lightning 2, makes a new controller before it exports, goes on updating it on the
    weights' batches, and lets the learning rate reach its end half-way.

    Args:
        batches_per_update: Paths judged between two updates of the controller.
        warmup_epochs: Epochs that train weights only.
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        reward: Reward of a path, by default the negative detection loss.
        policy_fn: Makes the controller; NNI's by default.
        update_kwargs: Arguments of the controller's update; NNI's by default.

    Raises:
        InputError: If what NNI's controller needs is not installed.

    Source:
        Pham et al., ICML 2018.
    """

    def __init__(
        self,
        *,
        batches_per_update: int = 20,
        warmup_epochs: int = 0,
        gradient_clip_val: float | None = None,
        reward: Reward = negative_loss,
        policy_fn: Any = None,
        update_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not has_tianshou:
            raise InputError(
                "NNI's controller needs packages that are not installed", source="ENAS", allowed=ENAS_REQUIREMENTS
            )
        super().__init__(
            batches_per_update=batches_per_update,
            warmup_epochs=warmup_epochs,
            policy_fn=policy_fn,
            update_kwargs=update_kwargs,
        )
        self.gradient_clip_val = gradient_clip_val
        self.reward = reward

    def configure_oneshot_module(self, training_module: Any) -> ControllerModule:
        """Wrap the evaluator's Lightning module."""
        return ControllerModule(
            training_module,
            self.reward,
            self.gradient_clip_val,
            batches_per_update=self.batches_per_update,
            policy_fn=self.policy_fn,
            update_kwargs=self.update_kwargs,
            warmup_epochs=self.warmup_epochs,
        )

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """Return both loaders, one after the other."""
        return PhasedLoader(train_dataloader_fn(), val_dataloader_fn())
