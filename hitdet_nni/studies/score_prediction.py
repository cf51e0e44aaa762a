"""Whether the scores of a screening say anything about what architectures reach on their own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test, rankdata

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import COMPONENTS, component_of
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.retrainings import Trained
from hitdet_nni.studies.stability import screened_preferences

ALL = "all components"
"""Stands for the sum over the components."""

PERMUTATIONS = 9_999
"""Permutations at most; of fewer architectures all are counted."""

DIGITS = 12
"""Mean places that are equal to so many digits share a rank: those of the same operators in another order do."""

Above = Mapping[str, Mapping[str, float]]
"""Share of the other operators that an operator stands above in its component's screening, by component and name."""


@dataclass(frozen=True)
class ScorePrediction:
    """How far the accuracy of retrained architectures follows the screening's order of their operators.

    Attributes:
        component: The component whose operators are asked about, or :data:`ALL`.
        spearman: Rank correlation of an architecture's mAP and the mean place of its operators.
        p_value: Probability that shuffled accuracies follow as well, or better.
        architectures: How many.
    """

    component: str
    spearman: float
    p_value: float
    architectures: int

    def sentence(self) -> str:
        """Return the same in words."""
        return (
            f"{self.component}: the screening's order of operators and the mAP of the {self.architectures} retrained "
            f"architectures go together by a Spearman correlation of {self.spearman:+.2f}; chance does as well or "
            f"better with probability {self.p_value:.2g}"
        )


def places_above(run: RunDirectory, whole: SearchSpace) -> dict[str, dict[str, float]]:
    """Return what a screening has made of the operators of each component that it has screened.

    Args:
        run: Run directory of the screening.
        whole: The operators that it has chosen from.

    Raises:
        InputError: If scores are damaged, or those of other operators.
    """
    found: dict[str, dict[str, float]] = {}
    for component in COMPONENTS:
        if run.scores(component).exists():
            names = whole[component]
            ranks = screened_preferences(run, component, names).ranks()[0]
            above = (len(names) - ranks) / max(1, len(names) - 1)
            found[component] = dict(zip(names, above.tolist(), strict=True))
    return found


def score_predictions(trained: Sequence[Trained], above: Above, seed: int = 0) -> list[ScorePrediction]:
    """Return the correlations for each screened component, and with several of them for their sum.

    A component in which all architectures stand equally high, or architectures that all reach the same, say nothing
    and are left out.

    Args:
        trained: Retrained architectures.
        above: What the screening has made of the operators, as :func:`places_above` gives it.
        seed: Seed of the permutations, where there are too many to count all.
    """
    accuracy = np.array([one.mean for one in trained])
    columns = {
        component: np.array([_mean_place(one.sample, component, row) for one in trained])
        for component, row in above.items()
    }
    if len(columns) > 1:
        columns[ALL] = np.sum(list(columns.values()), axis=0)
    return [
        _prediction(name, column, accuracy, seed)
        for name, column in columns.items()
        if np.ptp(column.round(DIGITS)) > 0 and np.ptp(accuracy) > 0
    ]


def _mean_place(sample: Mapping[str, str], component: str, row: Mapping[str, float]) -> float:
    return statistics.fmean(row[name] for label, name in sample.items() if component_of(label) == component)


def _prediction(
    name: str, column: npt.NDArray[np.float64], accuracy: npt.NDArray[np.float64], seed: int
) -> ScorePrediction:
    ours, reached = rankdata(column.round(DIGITS)), rankdata(accuracy)

    def correlation(places: npt.NDArray[np.float64]) -> float:
        return float(np.corrcoef(places, reached)[0, 1])

    test = permutation_test(
        (ours,),
        correlation,
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return ScorePrediction(name, float(test.statistic), float(test.pvalue), len(ours))
