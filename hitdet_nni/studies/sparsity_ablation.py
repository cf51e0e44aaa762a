"""What the column-sparse term does to the scores that screening ranks by (Fig. 4), and to their agreement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from hitdet_nni.config.screening_settings import Gates
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import PerComponent, Settings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.data.sources import open_data
from hitdet_nni.nas.health.rank_agreement import Agreement, Preferences
from hitdet_nni.pipeline.screening import screen_group
from hitdet_nni.runs.tables import read_scores
from hitdet_nni.studies.jobs import Job, opened, seeded


@dataclass(frozen=True)
class SparseScreening(Job):
    """A screening in which no operator is removed.

    Attributes:
        component: What is screened.
        space: The whole search space.
    """

    component: Component
    space: SearchSpace

    @property
    def reading(self) -> tuple[Gates, float]:
        """How the term is applied, and mu."""
        return self.settings.screening.gates, self.settings.screening.sparsity_weight


@dataclass(frozen=True)
class ScoreCurves:
    """The scores of one screening.

    Attributes:
        gates: What the architecture parameters are turned into weights by.
        weight: mu of Eq. 4.
        seed: Its seed.
        scores: One value an epoch for each operator.
    """

    gates: Gates
    weight: float
    seed: int
    scores: dict[str, tuple[float, ...]]

    def last(self) -> list[float]:
        """Return the scores after the last epoch."""
        return [row[-1] for row in self.scores.values()]

    @property
    def deviation(self) -> float:
        """Standard deviation of the last scores over the operators."""
        return statistics.pstdev(self.last())

    @property
    def relative(self) -> float:
        """The deviation over the mean: without a softmax all scores may shrink together. 0 where all are 0."""
        mean = statistics.fmean(self.last())
        return self.deviation / mean if mean else 0.0

    @property
    def width(self) -> float:
        """Range of the last scores."""
        return max(self.last()) - min(self.last())


def sparse_screenings(
    settings: Settings,
    component: Component,
    space: SearchSpace,
    readings: Sequence[tuple[Gates, float]],
    seeds: int,
    folder: Path,
) -> list[SparseScreening]:
    """Return the screenings of one component with every reading of Eq. 4 and every seed, all on the same images.

    Where the settings rank by samples, which mu has no part in, these rank by probability.

    Args:
        settings: All settings; all but the reading, mu, the seed and the number of operators kept is used.
        component: The component.
        space: The whole search space.
        readings: How the term is applied, and mu.
        seeds: How many seeds; the first is the settings'.
        folder: Where their run directories go.
    """
    kept = PerComponent(**{name: len(names) for name, names in space.items()})
    rank_by = settings.screening.rank_by if settings.screening.rank_by != "samples" else "probability"
    fixed = {"keep": kept, "joint": False, "supernets": 1, "rank_by": rank_by}
    jobs = []
    for (gates, weight), one in product(readings, seeded(settings, seeds)):
        screening = one.screening.model_copy(update={"gates": gates, "sparsity_weight": weight, **fixed})
        own = one.model_copy(update={"screening": screening})
        jobs.append(SparseScreening(own, folder / f"{gates}-mu-{weight:g}-seed-{one.seed}", component, space))
    return jobs


def screen_sparsely(job: SparseScreening) -> ScoreCurves:
    """Screen a component, removing nothing; a screening that is done is read.

    Source:
        Section 4.4, Fig. 4.
    """
    settings = job.settings
    with opened(job) as run:
        if not run.scores(job.component).exists():
            data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
            with run.timed("screening"):
                screen_group(run, [job.component], job.space, settings, data)
    curves: dict[str, list[float]] = {}
    for score in read_scores(run.scores(job.component)):
        curves.setdefault(score.operator, []).append(score.score)
    scores = {operator: tuple(row) for operator, row in sorted(curves.items())}
    return ScoreCurves(*job.reading, settings.seed, scores)


def agreement_of(found: Sequence[ScoreCurves], keep: int) -> Agreement:
    """Return how far screenings with several seeds agree, the best ``keep`` operators of each taken as its choice."""
    preferences = []
    for curves in found:
        scores = np.array([curves.last()])
        places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        preferences.append(Preferences(scores, places < keep))
    return Agreement.of(preferences)


def reading_rows(found: Sequence[ScoreCurves], keep: int) -> list[dict[str, object]]:
    """Return a row a reading and mu: the spread of the scores, mean over seeds, beside the seeds' agreement.

    Args:
        found: All screenings.
        keep: Operators that a screening would keep.
    """
    rows: list[dict[str, object]] = []
    for gates, weight in dict.fromkeys((one.gates, one.weight) for one in found):
        own = [one for one in found if (one.gates, one.weight) == (gates, weight)]
        row: dict[str, object] = {
            "gates": gates,
            "mu": weight,
            "deviation": statistics.fmean(one.deviation for one in own),
            "range": statistics.fmean(one.width for one in own),
            "relative": statistics.fmean(one.relative for one in own),
        }
        if len(own) > 1:
            agreement = agreement_of(own, keep)
            row |= {
                "rho": agreement.spearman,
                "rho_p": agreement.spearman_p,
                "common": agreement.common,
                "of": agreement.possible,
                "chance": agreement.chance,
                "common_p": agreement.common_p,
            }
        rows.append(row)
    return rows


def curve_rows(found: Sequence[ScoreCurves]) -> list[dict[str, object]]:
    """Return one row a reading, mu, seed, epoch (from 0) and operator."""
    return [
        {
            "gates": curves.gates,
            "mu": curves.weight,
            "seed": curves.seed,
            "epoch": epoch,
            "operator": operator,
            "score": score,
        }
        for curves in found
        for operator, row in curves.scores.items()
        for epoch, score in enumerate(row)
    ]
