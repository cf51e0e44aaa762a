"""What the column-sparse term does to the scores that screening ranks by (Fig. 4)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import PerComponent, Settings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.progress import named
from hitdet_nni.pipeline import screen_group
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_scores


@dataclass(frozen=True)
class ScoreCurves:
    """The scores of a screening in which no operator is removed.

    Attributes:
        weight: mu of Eq. 4.
        scores: One value an epoch for each operator.
    """

    weight: float
    scores: dict[str, tuple[float, ...]]

    def last(self) -> list[float]:
        """Return the scores after the last epoch."""
        return [row[-1] for row in self.scores.values()]

    @property
    def deviation(self) -> float:
        """Standard deviation of the last scores over the operators."""
        return statistics.pstdev(self.last())

    @property
    def width(self) -> float:
        """Range of the last scores."""
        return max(self.last()) - min(self.last())


def screen_with(
    weight: float,
    component: Component,
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    folder: Path,
) -> ScoreCurves:
    """Screen a component with a weight of the column-sparse term, removing nothing.

    Args:
        weight: mu of Eq. 4.
        component: The component.
        space: The whole search space.
        settings: All settings; all but the weight and the number of operators kept is used.
        data: The images.
        folder: Run directory of this screening; one that is done is read.

    Source:
        Section 4.4, Fig. 4.
    """
    kept = PerComponent(**{name: len(names) for name, names in space.items()})
    screening = settings.screening.model_copy(
        update={"sparsity_weight": weight, "keep": kept, "joint": False, "supernets": 1}
    )
    settings = settings.model_copy(update={"screening": screening})
    run = RunDirectory(folder)
    run.open(settings, resume=True)
    if not run.scores(component).exists():
        with named(f"mu {weight:g}"):
            screen_group(run, [component], space, settings, data)
    curves: dict[str, list[float]] = {}
    for score in read_scores(run.scores(component)):
        curves.setdefault(score.operator, []).append(score.score)
    return ScoreCurves(weight, {operator: tuple(row) for operator, row in sorted(curves.items())})


def curve_rows(found: Sequence[ScoreCurves]) -> list[dict[str, object]]:
    """Return one row a weight, epoch (from 0) and operator."""
    return [
        {"mu": curves.weight, "epoch": epoch, "operator": operator, "score": score}
        for curves in found
        for operator, row in curves.scores.items()
        for epoch, score in enumerate(row)
    ]
