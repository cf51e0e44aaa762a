"""Do several seeds rank the same operators alike, and choose the same ones, more than chance would have them?

The null hypothesis is that what a seed prefers does not depend on which operator is which: it might as well have had
the same scores for other operators. Then each seed's operators can be relabelled at random, independently of the other
seeds', and the share of such relabellings with at least the agreement found is a p-value that holds whatever the scores
are. The layers of a seed are relabelled together: where the layers of one supernet prefer one operator together, that
counts once, and not as often as there are layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

NUM_RELABELLINGS = 9999
"""Random relabellings that the agreement found is compared with."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Preferences:
    """What one seed makes of the operators of a component.

    Attributes:
        scores: The larger, the better; equal ones are ties. Shape: ``[L, N]``, L layers (one row where operators are
            scored for all layers together), N operators.
        chosen: Which operators are kept, or decided on. Shape: ``[L, N]``.
    """

    scores: Floats
    chosen: npt.NDArray[np.bool_]

    def ranks(self) -> Floats:
        """Return the place of each operator in each layer, 1 the best, ties their mean place. Shape: ``[L, N]``."""
        places: Floats = rankdata(-self.scores, axis=1)
        return places

    def chance_of_repetition(self) -> float:
        """Return the probability that a random relabelling leaves the choices as they are."""
        alike = Counter(map(tuple, self.chosen.T.tolist()))
        return math.prod(map(math.factorial, alike.values())) / math.factorial(self.chosen.shape[1])


@dataclass(frozen=True)
class Pair:
    """How far two seeds agree.

    Attributes:
        first: Number of the one, from 0.
        second: Number of the other.
        spearman: Rank correlation of the scores, mean over the layers. A layer that either has no order for counts 0.
        common: Choices in common.
    """

    first: int
    second: int
    spearman: float
    common: int


@dataclass(frozen=True)
class Agreement:
    """How far seeds agree on the operators of a component.

    Attributes:
        pairs: Every two seeds.
        spearman: Mean rank correlation over the pairs.
        spearman_p: Probability of that, or more, by chance.
        common: Mean number of choices in common over the pairs.
        chance: What chance gives of them: for k of N operators kept, k^2 / N, the mean of the hypergeometric
            distribution; for L layers with one of N operators each, L / N.
        possible: Choices of a seed.
        common_p: Probability of ``common``, or more, by chance.
        least_p: What ``common_p`` would be if all seeds made the same choices: with few seeds and operators chance has
            that too.
    """

    pairs: tuple[Pair, ...]
    spearman: float
    spearman_p: float
    common: float
    chance: float
    possible: int
    common_p: float
    least_p: float

    @classmethod
    def of(cls, seeds: Sequence[Preferences], relabellings: int = NUM_RELABELLINGS, seed: int = 0) -> Agreement:
        """Compare seeds.

        Args:
            seeds: What each makes of the same operators in the same layers, in the same order; at least two.
            relabellings: Random relabellings; a p-value cannot be below ``1 / (1 + relabellings)``.
            seed: Seed of the relabellings.
        """
        layers, operators = seeds[0].scores.shape
        ranks = np.stack([_standardized(one.ranks()) for one in seeds])
        chosen = np.stack([one.chosen.astype(np.float64) for one in seeds])
        unchanged = np.arange(operators)
        correlations = _by_pair(ranks, np.broadcast_to(unchanged, (1, len(seeds), operators)))[:, 0] / layers
        common = _by_pair(chosen, np.broadcast_to(unchanged, (1, len(seeds), operators)))[:, 0]
        generator = np.random.default_rng(seed)
        labels = generator.permuted(np.tile(unchanged, (relabellings, len(seeds), 1)), axis=2)
        totals = chosen.sum(axis=2)  # [S, L]
        pairs = list(combinations(range(len(seeds)), 2))
        return cls(
            pairs=tuple(
                Pair(first, second, float(correlation), round(count))
                for (first, second), correlation, count in zip(pairs, correlations, common, strict=True)
            ),
            spearman=float(correlations.mean()),
            spearman_p=_p_value(correlations.mean(), _by_pair(ranks, labels).mean(axis=0) / layers),
            common=float(common.mean()),
            chance=float(np.mean([totals[first] @ totals[second] for first, second in pairs])) / operators,
            possible=int(totals[0].sum()),
            common_p=_p_value(common.mean(), _by_pair(chosen, labels).mean(axis=0)),
            least_p=min(one.chance_of_repetition() for one in seeds) ** (len(seeds) - 1),
        )


def _standardized(ranks: Floats) -> Floats:
    """Return ranks whose products with others sum to the correlation: mean 0, norm 1; all 0 where none differ."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    standardized: Floats = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    return standardized


def _by_pair(values: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Return the sum of the products of every two seeds' values, for each relabelling of their operators.

    Args:
        values: Shape: ``[S, L, N]``.
        labels: For each relabelling and seed, which operator's values each operator has. Shape: ``[D, S, N]``.

    Returns:
        Shape: ``[S * (S - 1) / 2, D]``.
    """
    products = np.einsum("sla,tlb->stab", values, values)
    pairs = combinations(range(len(values)), 2)
    return np.stack([products[s, t][labels[:, s], labels[:, t]].sum(axis=1) for s, t in pairs])


def _p_value(found: float, drawn: Floats) -> float:
    """Return the share of values that reach the one found, which counts as one of them."""
    # Equal sums must count as equal, though they are summed in another order.
    return (1 + int((drawn >= found - 1e-9).sum())) / (1 + len(drawn))
