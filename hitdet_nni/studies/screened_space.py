"""The sub search spaces that a screening keeps against random ones, by what their architectures reach."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.space_costs import SpaceCosts
from hitdet_nni.studies.permutation_tests import exchange_p
from hitdet_nni.studies.random_architectures import drawn_samples, require_samples
from hitdet_nni.studies.retrainings import Trained, deviation, with_deviation

TYPICAL_DRAWS = 1_001
"""Architectures of the kept sub-spaces whose median cost is where both kinds are compared."""

MOST_SPACES = 1_000
"""Random sub-spaces tried for one architecture; many have hardly any of the cost that is asked for."""


def typical_cost(model: CostModel, space: SearchSpace, seed: int) -> int:
    """Return the median FLOPs of the architectures of a space, of :data:`TYPICAL_DRAWS` drawn ones."""
    costs = SpaceCosts(model, space)
    rng = random.Random(seed)
    rows = [list(row.values()) for row in costs.counts.values()]
    return int(statistics.median(costs.fixed + sum(map(rng.choice, rows)) for _ in range(TYPICAL_DRAWS)))


def random_space(whole: SearchSpace, like: SearchSpace, rng: random.Random) -> SearchSpace:
    """Return as many random operators of each component as ``like`` has, in the order of ``whole``."""
    drawn: SearchSpace = {}
    for component in COMPONENTS:
        chosen = set(rng.sample(range(len(whole[component])), len(like[component])))
        drawn[component] = [name for number, name in enumerate(whole[component]) if number in chosen]
    return drawn


def samples_of_random_spaces(
    model: CostModel, whole: SearchSpace, like: SearchSpace, count: int, *, least: float, most: float, seed: int
) -> list[dict[str, str]]:
    """Return one architecture each of ``count`` random sub-spaces, all within the costs.

    A sub-space of which all architectures are cheaper or dearer, or there already, gives way to another one.

    Args:
        model: Costs of all layers.
        whole: The operators that screening chooses from.
        like: Gives the sizes of the sub-spaces.
        count: How many.
        least: Least FLOPs of the whole detector.
        most: Largest FLOPs.
        seed: Seed of all draws.

    Raises:
        InputError: If :data:`MOST_SPACES` random sub-spaces had none of that cost.
    """
    rng = random.Random(seed)
    found: list[dict[str, str]] = []
    for _ in range(count):
        for _ in range(MOST_SPACES):
            space, drawing = random_space(whole, like, rng), rng.randrange(2**32)
            drawn = drawn_samples(model, space, 1, least=least, most=most, seed=drawing, exclude=found)
            if drawn:
                found += drawn
                break
        else:
            break
    require_samples(found, count, "--architectures", "fewer architectures, or a larger --slack")
    return found


@dataclass(frozen=True)
class ScreeningComparison:
    """What architectures of the kept sub-spaces reach beside those of random ones.

    Attributes:
        kept_mean: Mean over the architectures of the kept sub-spaces of their mean mAP.
        kept_deviation: Standard deviation of these means between the architectures.
        random_mean: The same of random sub-spaces.
        random_deviation: Its standard deviation.
        architectures: Architectures of each kind.
        p_value: Probability that exchanging the architectures at random between the two kinds puts the kept ones ahead
            by as much or more.
    """

    kept_mean: float
    kept_deviation: float | None
    random_mean: float
    random_deviation: float | None
    architectures: int
    p_value: float

    @classmethod
    def of(cls, kept: Sequence[Trained], drawn: Sequence[Trained], seed: int = 0) -> ScreeningComparison:
        """Compare the two kinds by their means.

        Args:
            kept: Architectures of the kept sub-spaces.
            drawn: As many of random ones.
            seed: Seed of the permutations, where there are too many to count all.
        """
        ours, others = [one.mean for one in kept], [one.mean for one in drawn]
        return cls(
            statistics.fmean(ours),
            deviation(ours),
            statistics.fmean(others),
            deviation(others),
            len(ours),
            exchange_p(ours, others, seed),
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""
        ahead = self.kept_mean - self.random_mean
        return [
            f"kept sub-spaces: mAP {with_deviation(self.kept_mean, self.kept_deviation, self.architectures)}",
            f"random sub-spaces: mAP {with_deviation(self.random_mean, self.random_deviation, self.architectures)}",
            f"the kept ones are {'ahead' if ahead >= 0 else 'behind'} by {abs(ahead):.3f}; chance does as well for "
            f"them, or better, with probability {self.p_value:.2g}",
        ]
