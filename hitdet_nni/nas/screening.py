"""Screening: from the whole search space to the components' sub search spaces (section 3.2)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hitdet_nni.config.screening_settings import ScreeningSettings, screened_components
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component, component_of
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.operator_samples import score_operators
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.sample_evaluation import evaluation
from hitdet_nni.nas.supernet import Phase, TrainedSupernet, train_supernet
from hitdet_nni.runs.tables import Score

Prepare = Callable[[Phase, Settings, DetectionData, int], Phase]
"""Called with what is to be trained, the settings, images and seed of it; returns what is trained instead."""


@dataclass(frozen=True)
class Screened:
    """The outcome of screening one component, or several at once.

    Attributes:
        kept: Operators of each screened component's sub search space, in the order of the whole space.
        records: One record an epoch.
        warnings: What the signs of health give reason to doubt; one line each.
        activations: How each component's layers were computed.
        sampled: Scores of each component's operators by evaluated samples, where they were ranked so.
    """

    kept: Mapping[Component, tuple[str, ...]]
    records: tuple[EpochRecord, ...]
    warnings: tuple[str, ...] = ()
    activations: Mapping[Component, str] = field(default_factory=dict)
    sampled: Mapping[str, Mapping[str, float]] | None = None

    def scores(self, component: Component) -> list[Score]:
        """Return a score for each epoch and active operator, and tell whether the epoch's end removed it.

        Operators that were ranked by samples have scores after the last epoch only.
        """
        if self.sampled is not None:
            return _ranked(self.records[-1].epoch, self.sampled[component], self.kept[component])
        rows: list[Score] = []
        for record, following in zip(self.records, [*self.records[1:], None], strict=True):
            left = self.kept[component] if following is None else following.scores[component]
            rows += _ranked(record.epoch, record.scores[component], left)
        return rows


def _ranked(epoch: int, scores: Mapping[str, float], left: Container[str]) -> list[Score]:
    """Return the scores of an epoch, the best first, and which operators its end left."""
    order = sorted(scores, key=lambda name: scores[name], reverse=True)
    return [Score(epoch, name, scores[name], rank, removed=name not in left) for rank, name in enumerate(order, 1)]


def screening_groups(
    settings: ScreeningSettings, space: Mapping[Component, Sequence[str]]
) -> list[tuple[Component, ...]]:
    """Return the components screened at once: one after the other as in section 4.2, or all in one supernet.

    A component that has no more operators than are kept of it needs no screening.

    Args:
        settings: The ``screening`` section.
        space: Candidate names of each component.
    """
    screened = screened_components(settings, space)
    return [(one,) for one in screened] if not settings.joint else [screened] if screened else []


def screening_name(components: Sequence[Component]) -> str:
    """Return a name for the components that are screened at once."""
    return "+".join(components)


def screening_seed(seed: int, components: Sequence[Component], supernet: int = 1) -> int:
    """Return the seed of a screening by one supernet, so that it does not depend on what was screened before it."""
    name = screening_name(components) + (f" {supernet}" if supernet > 1 else "")
    return (seed + zlib.crc32(name.encode())) % 2**32


def screening_stage(components: Sequence[Component], supernet: int | None = None) -> str:
    """Return what the screening of some components is called in messages, or one supernet's part of it."""
    return f"screening {screening_name(components)}" + ("" if supernet is None else f" {supernet}")


def screen_components(
    components: Sequence[Component],
    space: Mapping[Component, Sequence[str]],
    settings: Settings,
    data: DetectionData,
    on_epoch: Callable[[EpochRecord], None],
    checkpoints: CheckpointFolder | None = None,
    supernet: int | None = None,
    prepare: Prepare = lambda phase, settings, data, seed: phase,
) -> Screened:
    """Screen components in one supernet, while the others stand at a fixed operator.

    Args:
        components: The components to screen.
        space: The whole search space.
        settings: The run's settings; its epochs and samples are this supernet's.
        data: The images.
        on_epoch: Called at the end of every epoch.
        checkpoints: Where checkpoints are saved; the screening goes on from the newest that is there already.
        supernet: Its number, from 1, where several screen the components. They have the same images and halves of
            them, and nothing else in common.
        prepare: Gives the supernet weights to start from.

    With ``screening.rank_by: samples`` the supernet is trained with its architecture parameters as they are
    initialised, all nearly equal, and nothing is removed before the operators are scored at the end. A screening that
    was interrupted while they are scored begins that anew, from the checkpoint of the last epoch.

    Source:
        Section 3.2, Eq. 4; section 4.2 for the schedule. The paper screens one component at a time "due to the GPU
        memory constraint". Scores by samples are an addition.
    """
    screening = settings.screening
    skeleton = settings.skeleton
    if screening.depths is not None:
        skeleton = skeleton.model_copy(update={"depths": screening.depths})
    phase = Phase(
        stage=screening_stage(components, supernet),
        pretrained=screening.pretrained,
        skeleton=skeleton,
        space={
            component: list(space[component]) if component in components else [getattr(screening.fixed, component)]
            for component in COMPONENTS
        },
        epochs=screening.epochs,
        warmup_epochs=math.inf,
        decodes=False,
    )
    keep: dict[str, int] = {component: getattr(screening.keep, component) for component in components}
    if screening.rank_by != "samples":
        phase = replace(
            phase,
            warmup_epochs=screening.warmup_epochs,
            sparsity_weight=screening.sparsity_weight,
            gates=screening.gates,
            pruning=PruningSchedule(keep, screening.rank_by),
        )
    seed = screening_seed(settings.seed, components, supernet or 1)
    # Each screening has halves of its own, which do not depend on the run's seed where the data has one.
    split_seed = screening_seed(settings.data.seed_of(settings.seed), components)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"seed": split_seed})})
    phase = prepare(phase, settings, data, seed)
    trained = train_supernet(phase, settings, data, seed, on_epoch, checkpoints)
    if screening.rank_by == "samples":
        sampled = _sampled_scores(trained, phase, settings, data, seed)
        best = {component: _best(sampled[component], keep[component]) for component in components}
        return Screened(best, trained.records, trained.warnings, trained.activations, sampled)
    left = {component_of(label): tuple(layer.active_names) for label, layer in trained.module.mixed_layers().items()}
    kept: dict[Component, tuple[str, ...]] = {component: left[component] for component in components}
    return Screened(kept, trained.records, trained.warnings, trained.activations)


def _sampled_scores(
    trained: TrainedSupernet, phase: Phase, settings: Settings, data: DetectionData, seed: int
) -> dict[str, dict[str, float]]:
    """Score the operators of a trained supernet by samples."""
    screening = settings.screening
    supernet = trained.sampled
    with evaluation(supernet, phase.stage, settings, data, seed, screening.sample_images, screening.samples) as losses:
        return score_operators(losses, supernet.candidates, screening.samples, seed)


def _best(scores: Mapping[str, float], count: int) -> tuple[str, ...]:
    """Return the operators with the largest scores, in the order of the scores."""
    best = sorted(scores, key=lambda name: scores[name], reverse=True)[:count]
    return tuple(name for name in scores if name in best)
