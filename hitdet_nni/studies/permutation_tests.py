"""How probable a difference of means is by chance: tests that exchange what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import permutation_test

PERMUTATIONS = 99_999
"""Permutations at most; fewer are counted."""


def exchange_p(ours: Sequence[float], others: Sequence[float], seed: int = 0) -> float:
    """Return the probability that as many of all as are ours have a mean that is as far ahead of the others', or more.

    Args:
        ours: What is asked about.
        others: What it is compared with; there may be more or fewer of them.
        seed: Seed of the permutations, where there are too many to count all.
    """
    if len(ours) == 1:  # SciPy wants two
        return (1 + sum(value >= ours[0] for value in others)) / (1 + len(others))
    test = permutation_test(
        (ours, others),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        alternative="greater",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def paired_p(differences: Sequence[float]) -> float:
    """Return the probability that differences of random signs have as large a mean, or a larger one."""
    if not math.fsum(map(abs, differences)):
        return 1.0
    if len(differences) == 1:  # SciPy wants two
        return 0.5 if differences[0] > 0 else 1.0
    test = permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
