"""Screening: from the whole search space to the components' sub search spaces (section 3.2)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component, component_of
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.runs.tables import Score
from hitdet_nni.search.epoch_record import EpochRecord
from hitdet_nni.search.pruning import PruningSchedule
from hitdet_nni.search.supernet import Phase, train_supernet


@dataclass(frozen=True)
class Screened:
    """The outcome of screening one component, or several at once.

    Attributes:
        kept: Operators of each screened component's sub search space, in the order of the whole space.
        records: One record an epoch.
        warnings: What the signs of health give reason to doubt; one line each.
        activations: How each component's layers were computed.
    """

    kept: Mapping[Component, tuple[str, ...]]
    records: tuple[EpochRecord, ...]
    warnings: tuple[str, ...] = ()
    activations: Mapping[Component, str] = field(default_factory=dict)

    def scores(self, component: Component) -> list[Score]:
        """Return a score for each epoch and active operator, and tell whether the epoch's end removed it."""
        rows: list[Score] = []
        for record, following in zip(self.records, [*self.records[1:], None], strict=True):
            scores = record.scores[component]
            left = self.kept[component] if following is None else following.scores[component]
            for rank, name in enumerate(sorted(scores, key=lambda name: scores[name], reverse=True), start=1):
                rows.append(Score(record.epoch, name, scores[name], rank, removed=name not in left))
        return rows


def screening_groups(joint: bool) -> list[tuple[Component, ...]]:
    """Return the components screened at once: one after the other as in section 4.2, or all in one supernet."""
    return [COMPONENTS] if joint else [(component,) for component in COMPONENTS]


def screening_name(components: Sequence[Component]) -> str:
    """Return a name for the components that are screened at once."""
    return "+".join(components)


def screening_seed(seed: int, components: Sequence[Component]) -> int:
    """Return the seed of a screening, so that it does not depend on what was screened before it."""
    return (seed + zlib.crc32(screening_name(components).encode())) % 2**32


def screening_stage(components: Sequence[Component]) -> str:
    """Return what the screening of some components is called in messages."""
    return f"screening {screening_name(components)}"


def screen_components(
    components: Sequence[Component],
    space: Mapping[Component, Sequence[str]],
    settings: Settings,
    data: DetectionData,
    on_epoch: Callable[[EpochRecord], None],
    checkpoints: CheckpointFolder | None = None,
) -> Screened:
    """Screen components in one supernet, while the others stand at a fixed operator.

    Args:
        components: The components to screen.
        space: The whole search space.
        settings: The run's settings.
        data: The images.
        on_epoch: Called at the end of every epoch.
        checkpoints: Where checkpoints are saved; the screening goes on from the newest that is there already.

    Source:
        Section 3.2, Eq. 4; section 4.2 for the schedule. The paper screens one component at a time "due to the GPU
        memory constraint".
    """
    screening = settings.screening
    skeleton = settings.skeleton
    if screening.depths is not None:
        skeleton = skeleton.model_copy(update={"depths": screening.depths})
    phase = Phase(
        stage=screening_stage(components),
        pretrained=screening.pretrained,
        skeleton=skeleton,
        space={
            component: list(space[component]) if component in components else [getattr(screening.fixed, component)]
            for component in COMPONENTS
        },
        epochs=screening.epochs,
        warmup_epochs=screening.warmup_epochs,
        sparsity_weight=screening.sparsity_weight,
        pruning=PruningSchedule(
            keep={component: getattr(screening.keep, component) for component in components},
            rank_by=screening.rank_by,
        ),
    )
    seed = screening_seed(settings.seed, components)
    # Each screening has halves of its own, which do not depend on the run's seed where the data has one.
    split_seed = screening_seed(settings.data.seed_of(settings.seed), components)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"seed": split_seed})})
    trained = train_supernet(phase, settings, data, seed, on_epoch, checkpoints)
    left = {component_of(label): tuple(layer.active_names) for label, layer in trained.module.mixed_layers().items()}
    kept: dict[Component, tuple[str, ...]] = {component: left[component] for component in components}
    return Screened(kept, trained.records, trained.warnings, trained.activations)
