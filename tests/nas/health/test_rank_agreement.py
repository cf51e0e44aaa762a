"""Agreement of seeds: closed forms, an enumeration of all relabellings, and the level of the test."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import hypergeom, spearmanr

from hitdet_nni.nas.health.rank_agreement import NUM_RELABELLINGS, Agreement, Preferences


def keeping(scores, keep):
    """One row of scores of which the best are kept, as a screening has them."""
    scores = np.asarray(scores, dtype=float)
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[:keep]] = True
    return Preferences(scores[None], kept[None])


def deciding(scores):
    """Scores of layers of each of which the best operator is decoded, as a search has them."""
    scores = np.asarray(scores, dtype=float)
    return Preferences(scores, scores == scores.max(axis=1, keepdims=True))


def test_equal_seeds_agree_as_far_as_can_be():
    one = keeping(np.random.default_rng(0).normal(size=32), 8)
    found = Agreement.of([one, one, one])
    least = 1 / (1 + NUM_RELABELLINGS)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert all((pair.spearman, pair.common) == (pytest.approx(1), 8) for pair in found.pairs)
    assert (found.spearman, found.common) == pytest.approx((1, 8))
    assert (found.spearman_p, found.common_p) == (least, least)
    assert (found.chance, found.possible) == (2, 8)  # 8 * 8 / 32
    assert found.least_p == pytest.approx(math.comb(32, 8) ** -2.0)


def test_opposite_seeds_agree_as_little_as_can_be():
    found = Agreement.of([keeping(range(6), 3), keeping(range(6, 0, -1), 3)])
    assert (found.spearman, found.common) == (pytest.approx(-1), 0)
    assert (found.spearman_p, found.common_p) == (1, 1)


def test_two_seeds_have_the_hypergeometric_distribution():
    """Of 3 and 3 of 9 operators 2 are in common; what chance gives of them is known without a draw."""
    seeds = [keeping([9, 8, 7, 6, 5, 4, 3, 2, 1], 3), keeping([9, 8, 1, 2, 3, 4, 5, 6, 7], 3)]
    found = Agreement.of(seeds)
    chance = hypergeom(9, 3, 3)
    assert (found.common, found.chance) == (2, chance.mean())
    assert found.common_p == pytest.approx(chance.sf(1), abs=4 * math.sqrt(chance.sf(1) / NUM_RELABELLINGS))
    assert found.least_p == pytest.approx(chance.pmf(3))


def test_rank_correlation_is_scipy_s_ties_included():
    rng = np.random.default_rng(1)
    scores = rng.integers(5, size=(3, 4, 9)).astype(float)  # [S, L, N], many ties
    found = Agreement.of([deciding(one) for one in scores], 9)
    for pair in found.pairs:
        layers = zip(scores[pair.first], scores[pair.second], strict=True)
        assert pair.spearman == pytest.approx(np.mean([spearmanr(*rows).statistic for rows in layers]))


def test_a_seed_without_an_order_agrees_with_nobody():
    equal = Preferences(np.ones((1, 4)), np.array([[True, True, False, False]]))
    found = Agreement.of([equal, keeping([4, 3, 2, 1], 2)])
    assert (found.spearman, found.spearman_p) == (0, 1)
    assert (found.common, found.possible) == (2, 2)


def test_p_values_are_those_of_all_relabellings():
    """Three layers of four operators, two seeds: every one of the 4! relabellings is tried, by loops."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 3, 4))
    second += first
    found = Agreement.of([deciding(first), deciding(second)])

    def agreement(order):
        other = second[:, order]
        correlation = np.mean([spearmanr(*rows).statistic for rows in zip(first, other, strict=True)])
        return correlation, sum(one.argmax() == two.argmax() for one, two in zip(first, other, strict=True))

    values = [agreement(list(order)) for order in itertools.permutations(range(4))]
    assert (found.spearman, found.common) == pytest.approx(values[0])
    assert found.chance == pytest.approx(np.mean([common for _, common in values])) == pytest.approx(3 / 4)
    for place, p_value in enumerate((found.spearman_p, found.common_p)):
        exact = np.mean([value[place] >= values[0][place] - 1e-9 for value in values])
        assert p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / NUM_RELABELLINGS))


def test_layers_that_prefer_one_operator_together_count_once():
    """Two seeds take the same of four operators in all of ten layers: chance has that in one of four relabellings."""
    scores = np.tile([3.0, 0, 0, 0], (10, 1))
    found = Agreement.of([deciding(scores), deciding(scores)])
    assert (found.common, found.chance, found.possible) == (10, 2.5, 10)
    assert found.least_p == pytest.approx(1 / 4)
    assert found.common_p == pytest.approx(1 / 4, abs=0.02)


def test_what_is_kept_whole_is_no_choice():
    found = Agreement.of([keeping([1, 2, 3], 3), keeping([3, 2, 1], 3)])
    assert (found.common, found.chance, found.common_p, found.least_p) == (3, 3, 1, 1)


@pytest.mark.parametrize(("layers", "seeds"), [(1, 3), (5, 2)])
def test_seeds_that_know_nothing_are_found_to_agree_as_rarely_as_the_p_value_says(layers, seeds):
    """A p-value of at most a comes with probability at most a, and of a continuous statistic exactly a."""
    rng = np.random.default_rng(3)
    draws, operators = 300, 10

    def seed():
        # The layers of a seed prefer operators together.
        scores = rng.normal(size=(layers, operators)) + rng.normal(size=operators)
        return keeping(scores[0], 4) if layers == 1 else deciding(scores)

    found = [Agreement.of([seed() for _ in range(seeds)], 199, number) for number in range(draws)]
    for level in (0.05, 0.2, 0.5):
        margin = 3.5 * math.sqrt(level * (1 - level) / draws)
        assert np.mean([one.spearman_p <= level for one in found]) == pytest.approx(level, abs=margin)
        assert np.mean([one.common_p <= level for one in found]) <= level + margin
    common = [one.common for one in found]
    assert np.mean(common) == pytest.approx(found[0].chance, abs=3.5 * np.std(common) / math.sqrt(draws))
