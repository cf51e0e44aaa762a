"""What the study of the whole procedure says: each way to come to an architecture against the front's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test

from hitdet_nni.studies.retrainings import deviation
from hitdet_nni.studies.search_study import BEST_OF_FRONT, BEST_OF_RANDOM, FRONT, HANDMADE, PARAMETERS, RANDOM, Price


@dataclass(frozen=True)
class SeedOutcome:
    """What a seed's architectures reach on the images of figures.

    Attributes:
        seed: The seed.
        gflops: What the architecture costs that the parameters decide.
        by_way: mAP by the way that the architecture was come to.
        random: mAP of each random architecture.
    """

    seed: int
    gflops: float
    by_way: Mapping[str, float]
    random: Sequence[float]

    @classmethod
    def of(cls, seed: int, gflops: float, found: Mapping[str, tuple[float, float]]) -> SeedOutcome:
        """Sum up a seed.

        Args:
            seed: The seed.
            gflops: What the architecture costs that the parameters decide.
            found: mAP on the images of choices and of figures by competitor.
        """
        drawn = [pair for name, pair in found.items() if name.startswith(f"{RANDOM}-")]
        ways = {name: pair[1] for name, pair in found.items() if not name.startswith(f"{RANDOM}-")}
        shown = [pair[1] for pair in drawn]
        ways[BEST_OF_RANDOM] = max(drawn, key=lambda pair: pair[0])[1]
        ways[RANDOM] = statistics.fmean(shown)
        return cls(seed, gflops, ways, shown)


@dataclass(frozen=True)
class Against:
    """Ours against another way, seed by seed.

    Attributes:
        way: The other way.
        mean: Its mean mAP over the seeds.
        deviation: Its standard deviation.
        ahead: Mean difference of ours.
        wins: Seeds in which ours is ahead.
        p_value: Probability that exchanging both in each seed at random puts ours ahead by as much or more.
    """

    way: str
    mean: float
    deviation: float | None
    ahead: float
    wins: int
    p_value: float


@dataclass(frozen=True)
class SearchSummary:
    """What the study says.

    Attributes:
        way: Ours: the best of the front's, or the front's first choice where no more were trained.
        seeds: Seeds of the search.
        mean: Mean mAP of our architectures over the seeds.
        deviation: Its standard deviation.
        random_deviation: Standard deviation of random architectures, mean over the seeds.
        rank: Mean place of our architecture among it and the seed's random ones, 1 the best.
        against: The other ways.
        price: What a search and a retraining took.
    """

    way: str
    seeds: int
    mean: float
    deviation: float | None
    random_deviation: float | None
    rank: float
    against: tuple[Against, ...]
    price: Price

    @classmethod
    def of(cls, outcomes: Sequence[SeedOutcome], price: Price) -> SearchSummary:
        """Compare the ways over all seeds."""
        chosen = BEST_OF_FRONT in outcomes[0].by_way
        way = BEST_OF_FRONT if chosen else FRONT
        ours = [one.by_way[way] for one in outcomes]
        against = []
        for other in (*((FRONT,) if chosen else ()), PARAMETERS, RANDOM, BEST_OF_RANDOM, HANDMADE):
            theirs = [one.by_way[other] for one in outcomes]
            differences = [a - b for a, b in zip(ours, theirs, strict=True)]
            against.append(
                Against(
                    other,
                    statistics.fmean(theirs),
                    deviation(theirs),
                    statistics.fmean(differences),
                    sum(difference > 0 for difference in differences),
                    _paired_p(differences),
                )
            )
        spreads = [spread for one in outcomes if (spread := deviation(one.random)) is not None]
        ranks = [1 + sum(value >= ours[place] for value in one.random) for place, one in enumerate(outcomes)]
        return cls(
            way,
            len(outcomes),
            statistics.fmean(ours),
            deviation(ours),
            statistics.fmean(spreads) if spreads else None,
            statistics.fmean(ranks),
            tuple(against),
            price,
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""

        def spread(mean: float, deviation: float | None) -> str:
            return f"{mean:.3f}" + ("" if deviation is None else f" (sd {deviation:.3f})")

        lines = [f"{self.way}: mAP {spread(self.mean, self.deviation)} over {self.seeds} seeds"]
        for one in self.against:
            lines.append(
                f"{one.way}: mAP {spread(one.mean, one.deviation)}; {self.way} is "
                f"{'ahead' if one.ahead >= 0 else 'behind'} by {abs(one.ahead):.3f}, in {one.wins} of {self.seeds} "
                f"seeds, p {one.p_value:.2g}"
            )
        randoms, training = self.price.randoms, self.price.training_seconds
        lines.append(
            f"the place of {self.way} among it and {randoms} random ones is {self.rank:.1f} on average, "
            f"{(randoms + 2) / 2:.1f} by chance"
        )
        lines.append(
            f"a search took {self.price.search_seconds:.0f} s, the choice among its front's best "
            f"{self.price.choice_seconds:.0f} s and a retraining {training:.0f} s: the best of {randoms} random ones "
            f"costs {randoms * training:.0f} s against {self.price.whole:.0f} s"
        )
        return lines


def _paired_p(differences: Sequence[float]) -> float:
    """Return the probability that differences of random signs have as large a mean."""
    if not math.fsum(map(abs, differences)):
        return 1.0
    if len(differences) == 1:  # SciPy wants two
        return 0.5 if differences[0] > 0 else 1.0
    test = permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=99_999,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
