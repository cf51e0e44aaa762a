"""What the study of the whole procedure says: each way to come to an architecture against the front's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hitdet_nni.data.wording import counted
from hitdet_nni.studies.permutation_tests import exchange_p, paired_p
from hitdet_nni.studies.retrainings import deviation, with_deviation
from hitdet_nni.studies.search_study import (
    BEST_OF_FRONT,
    BEST_OF_RANDOM,
    FRONT,
    HALVED_RANDOM,
    HANDMADE,
    PARAMETERS,
    RANDOM,
    Price,
)


@dataclass(frozen=True)
class SeedOutcome:
    """What a seed's architectures reach on the images of figures.

    Attributes:
        seed: The seed.
        by_way: mAP by the way that the architecture was come to.
    """

    seed: int
    by_way: Mapping[str, float]


@dataclass(frozen=True)
class RandomPool:
    """What random architectures reach.

    Attributes:
        chosen_by: mAP of each on the images of choices.
        shown: mAP of each on the images of figures.
    """

    chosen_by: tuple[float, ...]
    shown: tuple[float, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> RandomPool:
        """Take apart pairs of mAP on the images of choices and of figures."""
        chosen_by, shown = zip(*pairs, strict=True)
        return cls(chosen_by, shown)

    def chances(self, count: int) -> npt.NDArray[np.float64]:
        """Return the probability of each to be the best, by the images of choices, of some that are drawn.

        Of those that are equally good the one that stands first is the better.

        Args:
            count: How many are drawn, without replacement, each set as likely as any other; all where there are fewer.
        """
        size = len(self.shown)
        count = min(count, size)
        order = sorted(range(size), key=lambda place: -self.chosen_by[place])
        chances = np.zeros(size)
        for better, place in enumerate(order):
            chances[place] = math.comb(size - 1 - better, count - 1) / math.comb(size, count)
        return chances


@dataclass(frozen=True)
class Against:
    """Ours against another way.

    Attributes:
        way: The other way.
        mean: Its mean mAP, over the seeds or over random architectures.
        deviation: Its standard deviation; of bests over the sets that they are the best of, where there are several.
        ahead: Difference of ours from it, of the means.
        wins: Seeds in which ours is ahead, where the other way has a seed's own architecture.
        p_value: Probability that chance puts ours ahead by as much or more: exchanging both in each seed, or for random
            ones shuffling ours among them. ``None`` for the best of them: the sets that one pool gives have their best
            architectures in common, and no test of ours against them is right.
    """

    way: str
    mean: float
    deviation: float | None
    ahead: float
    wins: int | None
    p_value: float | None


@dataclass(frozen=True)
class SearchSummary:
    """What the study says.

    Attributes:
        way: Ours: the best of the front's, or the front's first choice where no more were trained.
        seeds: Seeds of the search.
        mean: Mean mAP of our architectures over the seeds.
        deviation: Its standard deviation.
        architectures: Random architectures.
        rank: Mean place of our architecture among it and the random ones, 1 the best.
        halved: Random architectures that each seed's best is chosen among by halving; ``None`` in a study of an earlier
            version, which had none.
        against: The other ways.
        price: What a search and a retraining took.
    """

    way: str
    seeds: int
    mean: float
    deviation: float | None
    architectures: int
    rank: float
    halved: int | None
    against: tuple[Against, ...]
    price: Price

    @classmethod
    def of(cls, outcomes: Sequence[SeedOutcome], pool: RandomPool, price: Price, halved: int) -> SearchSummary:
        """Compare the ways over all seeds.

        Args:
            outcomes: What the seeds have found.
            pool: As many random architectures as the price pays, or more.
            price: What a search and a retraining took.
            halved: Random architectures that each seed's best was chosen among by halving.
        """
        chosen = BEST_OF_FRONT in outcomes[0].by_way
        way = BEST_OF_FRONT if chosen else FRONT
        ours = [one.by_way[way] for one in outcomes]
        per_seed = [
            _against_seeds(other, ours, [one.by_way[other] for one in outcomes])
            for other in (*((FRONT,) if chosen else ()), PARAMETERS, HANDMADE, HALVED_RANDOM)
        ]
        ranks = [1 + sum(value >= one for value in pool.shown) for one in ours]
        return cls(
            way,
            len(outcomes),
            statistics.fmean(ours),
            deviation(ours),
            len(pool.shown),
            statistics.fmean(ranks),
            halved,
            (*per_seed, _against_random(ours, pool), _against_best(ours, pool, price.randoms)),
            price,
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""
        randoms, training = self.price.randoms, self.price.training_seconds
        share = self.price.left
        left = "" if share == 1 else f", of which {share:.0%} were left after the choice"
        several = randoms < self.architectures
        of = {
            RANDOM: f" over {self.architectures} architectures",
            BEST_OF_RANDOM: f", the mean over all sets of {randoms} of them" if several else ", the best of them all",
            HALVED_RANDOM: f", the best of {self.halved} by halving",
        }
        seeds = counted(self.seeds, "{seed|seeds}")
        lines = [f"{self.way}: mAP {with_deviation(self.mean, self.deviation)} over {seeds}"]
        for one in self.against:
            wins = "" if one.wins is None else f", in {one.wins} of {self.seeds} seeds"
            chance = "" if one.p_value is None else f", p {one.p_value:.2g}"
            lines.append(
                f"{one.way}: mAP {with_deviation(one.mean, one.deviation)}{of.get(one.way, '')}; {self.way} is "
                f"{'ahead' if one.ahead >= 0 else 'behind'} by {abs(one.ahead):.3f}{wins}{chance}"
            )
        lines.append(
            f"the place of {self.way} among it and {self.architectures} random ones is {self.rank:.1f} on average, "
            f"{(self.architectures + 2) / 2:.1f} by chance"
        )
        lines.append(
            f"a search took {self.price.search_seconds:.0f} s, the choice among its front's best "
            f"{self.price.choice_seconds:.0f} s and a retraining {training:.0f} s{left}; by these times its "
            f"{self.price.whole:.0f} s pay for the best of {randoms} random ones"
            + ("" if self.halved is None else f", or of {self.halved} by halving")
        )
        return lines


def _against_seeds(way: str, ours: Sequence[float], theirs: Sequence[float]) -> Against:
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    wins = sum(difference > 0 for difference in differences)
    return Against(
        way, statistics.fmean(theirs), deviation(theirs), statistics.fmean(differences), wins, paired_p(differences)
    )


def _against_random(ours: Sequence[float], pool: RandomPool) -> Against:
    mean = statistics.fmean(pool.shown)
    ahead = statistics.fmean(ours) - mean
    return Against(RANDOM, mean, deviation(pool.shown), ahead, None, exchange_p(ours, pool.shown))


def _against_best(ours: Sequence[float], pool: RandomPool, count: int) -> Against:
    chances, shown = pool.chances(count), np.asarray(pool.shown)
    mean = float(chances @ shown)
    spread = math.sqrt(float(chances @ (shown - mean) ** 2)) if count < len(shown) else None
    return Against(BEST_OF_RANDOM, mean, spread, statistics.fmean(ours) - mean, None, None)
