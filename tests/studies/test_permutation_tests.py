"""Tests of chance against counting by hand."""

import itertools
import statistics

import pytest

from hitdet_nni.studies.permutation_tests import exchange_p, paired_p


def test_exchanges_are_those_of_all_ways_to_call_as_many_ours():
    ours, others = [0.5, 0.7, 0.4], [0.3, 0.45, 0.6, 0.2]
    together = [*ours, *others]

    def ahead(places):
        rest = [value for place, value in enumerate(together) if place not in places]
        return statistics.fmean(together[place] for place in places) - statistics.fmean(rest)

    drawn = [ahead(places) for places in itertools.combinations(range(7), 3)]
    expected = sum(value >= ahead((0, 1, 2)) - 1e-12 for value in drawn) / len(drawn)
    assert exchange_p(ours, others) == pytest.approx(expected)
    assert exchange_p([1.0] * 5, [0.0] * 3) == pytest.approx(1 / 56)


def test_one_among_others_has_the_share_of_its_rank():
    assert exchange_p([0.5], [0.1, 0.5, 0.9]) == 3 / 4
    assert exchange_p([1.0], [0.1, 0.5, 0.9]) == 1 / 4


def test_signs_of_pairs():
    assert paired_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(1 / 32)
    assert paired_p([0.1, 0.0, 0.2]) == pytest.approx(2 / 8)
    assert (paired_p([0.0, 0.0]), paired_p([0.3]), paired_p([-0.3])) == (1, 0.5, 1)
