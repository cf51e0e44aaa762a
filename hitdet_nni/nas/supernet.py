"""Training one supernet: what screening and the trinity search have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.screening_settings import Gates
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.settings import Settings, describe_lr, scaled_lr
from hitdet_nni.config.skeleton import Component, Skeleton
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.data.loaders import end_workers, search_loaders
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.backbone_weights import load_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.epoch_losses import EpochLosses
from hitdet_nni.engine.lightning_resume import ExactResume, named_divergence
from hitdet_nni.engine.optimizers import WeightOptimizer
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.step_progress import StepProgress
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.engine.training_state import Stateful
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.activation_choice import choose_activations
from hitdet_nni.nas.checks import budget_cost_model
from hitdet_nni.nas.cost_term import CostTerm, make_cost_term
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.epoch_watcher import SearchMonitor
from hitdet_nni.nas.evaluator import detection_evaluator
from hitdet_nni.nas.health.diagnosis import Setup, diagnose
from hitdet_nni.nas.memory.estimate import estimate_step_memory, free_memory, release_memory
from hitdet_nni.nas.mixed import forget_mixtures
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.sampled_supernet import SampledSupernet
from hitdet_nni.nas.strategy import AlphaOptimizer, ColumnSparseDARTS, ColumnSparseLightningModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """What distinguishes screening a component from the trinity search.

    Attributes:
        skeleton: The supernet's skeleton.
        space: Candidate names of each component; one name fixes a component.
        epochs: Epochs of the training.
        warmup_epochs: Epochs before the architecture parameters move; infinite where they never do.
        sparsity_weight: mu of Eq. 4.
        flops_weight: lambda of Eq. 6, per GFLOP.
        budget: What the architecture may cost, or ``None``; ``flops_weight`` is then where its multiplier starts.
        pruning: Operators to remove on the way, or ``None``.
        stage: What it is called in messages, e.g. ``"screening backbone"``.
        pretrained: Weights of a classification training for the backbone, or ``None``.
        gates: What turns the architecture parameters into weights.
        decodes: Whether the strongest operators at the end become the architecture.
    """

    skeleton: Skeleton
    space: Mapping[Component, Sequence[str]]
    epochs: int
    warmup_epochs: float
    sparsity_weight: float = 0.0
    flops_weight: float = 0.0
    budget: BudgetSettings | None = None
    pruning: PruningSchedule | None = None
    stage: str = "search"
    pretrained: Path | None = None
    gates: Gates = "softmax"
    decodes: bool = True


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet at the end of its training.

    Attributes:
        module: The trained supernet.
        records: One record an epoch.
        warnings: What its signs of health give reason to doubt; one line each.
        activations: How each component's layers were computed.
    """

    module: ColumnSparseLightningModule
    records: tuple[EpochRecord, ...]
    warnings: tuple[str, ...]
    activations: Mapping[Component, str]

    @property
    def sampled(self) -> SampledSupernet:
        """The supernet as architectures that are evaluated one by one."""
        return SampledSupernet.of(self.module)

    @property
    def sample(self) -> dict[str, str]:
        """The operator that is decided for each searched layer, those of a component with one candidate included."""
        space = self.module.model
        return self.module.decode(layer_candidates(space.skeleton, space.space))


def train_supernet(
    phase: Phase,
    settings: Settings,
    data: DetectionData,
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
    checkpoints: CheckpointFolder | None = None,
) -> TrainedSupernet:
    """Build a supernet and train it with :class:`ColumnSparseDARTS`.

    Args:
        phase: What is searched, and how.
        settings: Gives data, optimisers and loaders.
        data: The images.
        seed: Seed of initialisation, split, order and sampling.
        on_epoch: Called at the end of every epoch, by the main process.
        checkpoints: Where checkpoints are saved; the training goes on from the newest that is there already.

    Raises:
        InputError: If no component has several operators, or a checkpoint is there that was made by another number of
            processes.
        NonFiniteLossError: If a loss or a parameter is NaN or infinite.
    """
    if all(len(names) == 1 for names in phase.space.values()):
        raise InputError("every component has one operator: nothing to search", source=phase.stage)
    pl.seed_everything(seed, verbose=False)
    space = HitDetectorSpace(phase.skeleton, phase.space, len(data.classes))
    space.to(memory_format=torch.channels_last)  # a fifth to a quarter faster on CPU, most in the depthwise layers
    weights_loader, alphas_loader, val_loader = search_loaders(data, settings.data, phase.skeleton, seed)
    model = budget_cost_model(phase.skeleton, len(data.classes), phase.budget)
    cost = make_cost_term(model, phase.space, phase.flops_weight, phase.budget, settings.alphas.lr)
    losses = EpochLosses()

    def told(record: EpochRecord) -> None:
        on_epoch(record)
        results = {"loss": record.train_loss, "val_loss": record.val_loss, "gflops": record.expected_gflops}
        progress.end_epoch({**results, "seconds": record.seconds})

    monitor = SearchMonitor(val_loader, CostTable(model, phase.space), losses, told, seed)
    precision = Precision(settings.precision, distributed.device())
    resume = None
    if checkpoints is not None:
        samplers = (weights_loader.sampler, alphas_loader.sampler)
        parts: dict[str, Stateful] = {"losses": losses, "monitor": monitor, "precision": precision, "cost": cost}
        resume = ExactResume(checkpoints, settings.checkpoint.every_steps, samplers, parts, data.train.identity)
    strategy = _strategy(phase, settings, cost, precision)
    _mutate(space, strategy, phase, settings)
    loaders, steps = (weights_loader, alphas_loader), phase.epochs * len(weights_loader)
    folder = None if checkpoints is None else checkpoints.path
    activations = choose_activations(space, settings, phase.skeleton, loaders, steps, phase.stage, folder)
    _tell_memory(space, phase, settings)
    epoch, step = (0, 0) if resume is None else (resume.epoch, resume.step_in_epoch)
    progress = Stage(phase.stage, phase.epochs, weights_loader.sampler.steps, epoch=epoch, step=step)
    evaluator = detection_evaluator(
        weights_loader,
        alphas_loader,
        _weight_optimizer(settings),
        epochs=phase.epochs,
        callbacks=[StepProgress(progress, losses.last), monitor],
        losses=losses,
        stage=phase.stage,
        resume=resume,
    )
    # What NNI's sequential engine does, without the engine: it would swallow what a trial reports meanwhile.
    mutated = strategy.mutate_evaluator(evaluator)
    if resume is not None:
        resume.parts["gradient_norms"] = mutated.module.gradient_norms
    pl.seed_everything(seed + distributed.rank(), verbose=False)  # every process samples its own RoIs
    try:
        with named_divergence(phase.stage, resume):
            mutated.evaluate(space)
    finally:
        _release(space, (*loaders, val_loader))
    return TrainedSupernet(mutated.module, tuple(monitor.records), _warnings(phase, monitor.records), activations)


def _strategy(phase: Phase, settings: Settings, cost: CostTerm, precision: Precision) -> ColumnSparseDARTS:
    """Return the strategy of a phase, with the settings of the architecture parameters."""
    return ColumnSparseDARTS(
        sparsity_weight=phase.sparsity_weight,
        cost=cost,
        alpha_optimizer=AlphaOptimizer(**settings.alphas.model_dump()),
        pruning=phase.pruning,
        warmup_epochs=phase.warmup_epochs,
        gradient_clip_val=settings.weights.grad_clip,
        precision=precision,
        candidate_gradients=settings.weights.candidate_gradients,
        gates=phase.gates,
    )


def _release(space: HitDetectorSpace, loaders: Iterable[Any]) -> None:
    """Give back what the training has held beside the parameters: loaders' workers, recorded passes, torch's cache."""
    end_workers(loaders)
    forget_mixtures(space)  # the parameters have left the device: no recorded pass fits them any more
    release_memory(distributed.device())


def _warnings(phase: Phase, records: Sequence[EpochRecord]) -> tuple[str, ...]:
    """Return, and log, what the signs of health give reason to doubt."""
    weighs_cost = phase.flops_weight > 0 and phase.budget is None
    setup = Setup(phase.decodes, phase.pretrained is not None, weighs_cost)
    warnings = tuple(diagnose([record.health for record in records], phase.stage, setup))
    for line in warnings:
        logger.warning("%s", line)
    return warnings


def _mutate(space: HitDetectorSpace, strategy: ColumnSparseDARTS, phase: Phase, settings: Settings) -> None:
    """Turn the space into a supernet as the settings want it."""
    strategy.mutate_model(space)
    if phase.pretrained is not None:
        # Needed where the backbone is fixed at one operator, which it takes from among the file's.
        fixed = dict.fromkeys(phase.skeleton.labels("backbone"), phase.space["backbone"][0])
        load_backbone(space.detector.get_submodule("backbone"), phase.pretrained, fixed)
    apply_batch_norm(space, settings.batch_norm)


def _tell_memory(space: HitDetectorSpace, phase: Phase, settings: Settings) -> None:
    """Say how much memory the training needs, and warn where there is less."""
    device = distributed.device()
    estimate = estimate_step_memory(space, settings, phase.skeleton, device)
    logger.info("%s: %s", phase.stage, estimate.sentence())
    free = free_memory(device)
    if estimate.to_come > free:
        logger.warning(
            "%s: %.2f GB of this are still to come and %.2f GB are free; try a smaller data.batch_size, or "
            "supernet.activations=fused-min",
            phase.stage,
            estimate.to_come / 1e9,
            free / 1e9,
        )


def _weight_optimizer(settings: Settings) -> WeightOptimizer:
    given = settings.weights.model_dump(exclude={"grad_clip", "candidate_gradients"})
    scaling = (settings.weights.lr, settings.data.batch_size, distributed.world_size(), settings.lr_batch_size)
    given["lr"] = scaled_lr(*scaling)
    logger.info("%s", describe_lr(*scaling))
    return WeightOptimizer(**given)
