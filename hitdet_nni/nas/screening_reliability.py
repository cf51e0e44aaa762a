"""Several supernets of independent initialisation screen a component: their mean, and how far they agree.

A ranking that another supernet would not repeat says more of the random numbers than of the images. Halves of the
samples of one supernet cannot tell that: they share what its weights happen to prefer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.config.screening_settings import ScreeningSettings
from hitdet_nni.config.settings import Settings
from hitdet_nni.nas.health.rank_agreement import Agreement, Preferences
from hitdet_nni.runs.reliability import Reliability
from hitdet_nni.runs.tables import Score

SHORT_SCREENING = 2000
"""Steps up to which ``screening.supernets: auto`` has two supernets share a screening."""


def num_supernets(settings: ScreeningSettings, steps_an_epoch: int) -> int:
    """Return how many supernets share the screening of a component.

    Args:
        settings: The ``screening`` section.
        steps_an_epoch: Steps of the weights in an epoch.
    """
    if settings.supernets != "auto":
        return settings.supernets
    return 2 if settings.epochs > 1 and settings.epochs * steps_an_epoch <= SHORT_SCREENING else 1


def share_of(settings: ScreeningSettings, supernets: int, operators: int) -> ScreeningSettings:
    """Return the settings of one of several supernets: its share of the epochs and samples, rounded up.

    Args:
        settings: The ``screening`` section.
        supernets: How many share it.
        operators: Operators of the component that has the most: each is to come up in a sample.
    """
    epochs = math.ceil(settings.epochs / supernets)
    return settings.model_copy(
        update={
            "epochs": epochs,
            "warmup_epochs": min(math.ceil(settings.warmup_epochs / supernets), epochs - 1),
            "samples": max(operators, math.ceil(settings.samples / supernets)),
        }
    )


def final_preferences(scores: Sequence[Score], operators: Sequence[str]) -> Preferences:
    """Return the order that the screening by one supernet ends with, and what it keeps, as one row.

    An operator that was active for longer stands above one that was removed before; those removed at the end of one
    epoch stand by its scores, and so do those that are kept, by the last epoch's. This is the order by which screening
    decides. The scores of the last epoch in which all were active would be of one kind, but with the gradual removal of
    section 3.2 that epoch is the first one after warm-up, and says nothing of what the later ones have learned. Equal
    scores are ties.

    Args:
        scores: The screening's table.
        operators: All operators of the component, in the order of the row.

    Raises:
        KeyError: If an operator has no score.
    """
    last = {score.operator: (score.epoch, not score.removed, score.score) for score in scores}
    places = {key: place for place, key in enumerate(sorted(set(last.values())))}
    end = max(score.epoch for score in scores)
    return Preferences(
        np.array([[float(places[last[name]]) for name in operators]]),
        np.array([[last[name][0] == end and last[name][1] for name in operators]]),
    )


def mean_scores(tables: Sequence[Sequence[Score]], operators: Sequence[str], keep: int) -> list[Score]:
    """Return the table of a screening by several supernets: its last epoch, scored by the mean of their places.

    The score of an operator is the share of the others that it stands above, mean over the supernets: 1 if it is the
    best in all, 0 if the worst in all. Places, not scores, are averaged, because the scores of two supernets need not
    be of one scale. Of equal ones the first in the order of the space is the better.

    Args:
        tables: The table of each supernet.
        operators: All operators of the component, in the order of the space.
        keep: Operators that are left.
    """
    places = _places(tables, operators)
    above = (len(operators) - places) / max(1, len(operators) - 1)
    order = sorted(range(len(operators)), key=lambda index: places[index])
    epoch = max(score.epoch for table in tables for score in table)
    return [
        Score(epoch, operators[index], float(above[index]), rank, removed=rank > keep)
        for rank, index in enumerate(order, 1)
    ]


def ranked(scores: Sequence[Score], operators: Sequence[str]) -> list[str]:
    """Return the operators of a component in the order that a screening ends with, the best first.

    Args:
        scores: The screening's table.
        operators: All operators of the component; of equal ones the first is the better.
    """
    places = dict(zip(operators, _places([scores], operators), strict=True))
    return sorted(operators, key=places.__getitem__)


def _places(tables: Sequence[Sequence[Score]], operators: Sequence[str]) -> NDArray[np.float64]:
    """Return each operator's place, from 1, mean over tables."""
    places: NDArray[np.float64] = np.mean([final_preferences(table, operators).ranks()[0] for table in tables], axis=0)
    return places


def reliability_of(tables: Sequence[Sequence[Score]], operators: Sequence[str]) -> Reliability:
    """Return how far the supernets of a screening agree.

    Args:
        tables: The table of each supernet, at least two.
        operators: All operators of the component.
    """
    found = Agreement.of([final_preferences(table, operators) for table in tables])
    return Reliability(
        supernets=len(tables),
        operators=len(operators),
        spearman=found.spearman,
        spearman_p=found.spearman_p,
        common=found.common,
        kept=found.possible,
        chance=found.chance,
        common_p=found.common_p,
    )


def remedies(settings: Settings) -> list[str]:
    """Return what may make a screening more reliable and is not set already."""
    others = {
        "screening.rank_by=samples": settings.screening.rank_by != "samples",
        "weights.candidate_gradients=full": settings.weights.candidate_gradients != "full",
    }
    by_samples = " with ".join(name for name, is_open in others.items() if is_open)
    pretrained = settings.pretrain.boxes or settings.screening.pretrained is not None
    found = ["more screening.epochs", by_samples, "more images", "" if pretrained else "pretrained weights"]
    return [remedy for remedy in found if remedy]


def same_operators(scores: Sequence[Score], operators: Collection[str]) -> bool:
    """Whether a table is one of a screening of these operators."""
    return {score.operator for score in scores} == set(operators)
