"""Training one supernet: what screening and the trinity search have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from hitdet_nni.data.pipeline import DetectionData, search_loaders
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search.evaluator import EpochRecord, EpochWatcher, WeightOptimizer, detection_evaluator
from hitdet_nni.search.strategy import AlphaOptimizer, ColumnSparseDARTS, ColumnSparseLightningModule, Removal
from hitdet_nni.settings import Settings
from hitdet_nni.skeleton import Component, Skeleton


@dataclass(frozen=True)
class Phase:
    """What distinguishes screening a component from the trinity search.

    Attributes:
        skeleton: The supernet's skeleton.
        space: Candidate names of each component; one name fixes a component.
        epochs: Epochs of the training.
        warmup_epochs: Epochs before the architecture parameters move.
        sparsity_weight: mu of Eq. 4.
        flops_weight: lambda of Eq. 6, per GFLOP.
        removal: Operators to remove on the way, or ``None``.
    """

    skeleton: Skeleton
    space: Mapping[Component, Sequence[str]]
    epochs: int
    warmup_epochs: int
    sparsity_weight: float = 0.0
    flops_weight: float = 0.0
    removal: Removal | None = None


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet at the end of its training, with a record for each epoch."""

    module: ColumnSparseLightningModule
    records: tuple[EpochRecord, ...]

    @property
    def sample(self) -> dict[str, str]:
        """The strongest operator of each layer, the argmax of Eq. 5's weights; one entry a searched layer.

        Layers of a component that is fixed at one operator are part of it too.
        """
        space = self.module.model
        fixed = {layer.label: space.space[layer.component][0] for layer in space.skeleton.searched_layers()}
        return {**fixed, **self.module.export()}


def train_supernet(
    phase: Phase,
    settings: Settings,
    data: DetectionData,
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainedSupernet:
    """Build a supernet and train it with :class:`ColumnSparseDARTS`.

    Args:
        phase: What is searched, and how.
        settings: Gives data, optimisers and loaders.
        data: The pictures.
        seed: Seed of initialisation, split, order and sampling.
        on_epoch: Called at the end of every epoch.
    """
    pl.seed_everything(seed, verbose=False)
    space = HitDetectorSpace(phase.skeleton, phase.space, len(data.classes))
    space.to(memory_format=torch.channels_last)  # a fifth to a quarter faster on CPU, most in the depthwise layers
    weights_loader, alphas_loader, val_loader = search_loaders(data, settings.data, phase.skeleton, seed)
    cost = CostModel(phase.skeleton, len(data.classes)).expectation(phase.space)
    watcher = EpochWatcher(val_loader, cost, on_epoch, seed)
    strategy = ColumnSparseDARTS(
        sparsity_weight=phase.sparsity_weight,
        flops_weight=phase.flops_weight,
        expected_cost=cost,
        alpha_optimizer=AlphaOptimizer(**settings.alphas.model_dump()),
        removal=phase.removal,
        warmup_epochs=phase.warmup_epochs,
        gradient_clip_val=settings.weights.grad_clip,
    )
    optimizer = WeightOptimizer(**settings.weights.model_dump(exclude={"grad_clip"}))
    evaluator = detection_evaluator(weights_loader, alphas_loader, optimizer, epochs=phase.epochs, callbacks=[watcher])
    module = _run(strategy, space, evaluator)
    return TrainedSupernet(module, tuple(watcher.records))


def _run(strategy: ColumnSparseDARTS, space: HitDetectorSpace, evaluator: Any) -> ColumnSparseLightningModule:
    # What NNI's sequential engine does, without the engine: it would swallow what a trial reports meanwhile.
    strategy.mutate_model(space)
    mutated = strategy.mutate_evaluator(evaluator)
    mutated.evaluate(space)
    module: ColumnSparseLightningModule = mutated.module
    return module
