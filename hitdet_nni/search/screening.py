"""Screening: from the whole search space to a sub search space for one component (section 3.2)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.checkpoints import CheckpointFolder
from hitdet_nni.data.pipeline import DetectionData
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.search.strategy import Removal
from hitdet_nni.search.supernet import Phase, train_supernet
from hitdet_nni.settings import Settings
from hitdet_nni.skeleton import COMPONENTS, Component


@dataclass(frozen=True)
class ScreenedComponent:
    """The outcome of screening one component.

    Attributes:
        component: The component.
        kept: Operators of its sub search space, in the order of the whole space.
        records: One record an epoch.
        warnings: What the signs of health give reason to doubt; one line each.
    """

    component: Component
    kept: tuple[str, ...]
    records: tuple[EpochRecord, ...]
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, object]]:
        """One row an epoch and operator in the race: its score, its rank, and whether the epoch's end removed it."""
        rows: list[dict[str, object]] = []
        for record, following in zip(self.records, [*self.records[1:], None], strict=True):
            scores = record.scores[self.component]
            left = self.kept if following is None else following.scores[self.component]
            for rank, name in enumerate(sorted(scores, key=lambda name: scores[name], reverse=True), start=1):
                rows.append(
                    {
                        "epoch": record.epoch,
                        "operator": name,
                        "score": scores[name],
                        "rank": rank,
                        "removed": int(name not in left),
                    }
                )
        return rows


ROW_COLUMNS = ("epoch", "operator", "score", "rank", "removed")


def component_seed(seed: int, component: Component) -> int:
    """Seed of a component's screening, so that it does not depend on what was screened before it."""
    return (seed + zlib.crc32(component.encode())) % 2**32


def screening_stage(component: Component) -> str:
    """What the screening of a component is called in messages."""
    return f"screening {component}"


def screen_component(
    component: Component,
    space: Mapping[Component, Sequence[str]],
    settings: Settings,
    data: DetectionData,
    on_epoch: Callable[[EpochRecord], None],
    checkpoints: CheckpointFolder | None = None,
) -> ScreenedComponent:
    """Screen one component while the other two stand at a fixed operator.

    Args:
        component: The component to screen.
        space: The whole search space.
        settings: The run's settings.
        data: The pictures.
        on_epoch: Called at the end of every epoch.
        checkpoints: Where checkpoints are saved; the screening goes on from the newest that is there already.

    Source:
        Section 3.2, Eq. 4; section 4.2 for the schedule.
    """
    screening = settings.screening
    keep: int = getattr(screening.keep, component)
    skeleton = settings.skeleton
    if screening.depths is not None:
        skeleton = skeleton.model_copy(update={"depths": screening.depths})
    fixed: dict[Component, Sequence[str]] = {other: [getattr(screening.fixed, other)] for other in COMPONENTS}
    phase = Phase(
        stage=screening_stage(component),
        pretrained=screening.pretrained,
        skeleton=skeleton,
        space={**fixed, component: list(space[component])},
        epochs=screening.epochs,
        warmup_epochs=screening.warmup_epochs,
        sparsity_weight=screening.sparsity_weight,
        removal=Removal(keep={component: keep}, rank_by=screening.rank_by),
    )
    trained = train_supernet(phase, settings, data, component_seed(settings.seed, component), on_epoch, checkpoints)
    kept = next(iter(trained.module.mixed_layers().values())).active_names
    return ScreenedComponent(component, tuple(kept), trained.records, trained.warnings)
