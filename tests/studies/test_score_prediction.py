"""Whether a screening's scores predict what architectures reach: correlations in closed form, and what has none."""

from __future__ import annotations

import math

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.nas.checks import whole_space
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import Score, write_scores
from hitdet_nni.studies.retrainings import Trained
from hitdet_nni.studies.score_prediction import ALL, places_above, score_predictions

ABOVE = {"neck": {"a": 1.0, "b": 0.5, "c": 0.0}, "head": {"a": 0.0, "b": 0.5, "c": 1.0}}


def trained(neck, head, accuracy):
    sample = {"backbone/l01": "a", "neck/l01": neck[0], "neck/l02": neck[1], "head/l01": head}
    return Trained("one", sample, 1.0, 1.0, (accuracy,))


def test_accuracy_that_follows_the_order_and_its_reverse():
    """Four architectures: the neck's mean places are 1, .75, .5 and 0, and the head's go the other way."""
    ones = [trained("aa", "a", 0.4), trained("ab", "a", 0.3), trained("ac", "b", 0.2), trained("cc", "c", 0.1)]
    neck, head, every = score_predictions(ones, ABOVE)
    assert (neck.component, head.component, every.component) == ("neck", "head", ALL)
    assert (neck.spearman, neck.p_value) == pytest.approx((1.0, 1 / math.factorial(4)))
    # Places 1.5, 1.5, 3, 4 against 4, 3, 2, 1; of 24 orders the 2 that this is part of are the least.
    assert head.spearman == pytest.approx(-4.5 / math.sqrt(4.5 * 5))
    assert head.p_value == pytest.approx(1.0)
    # Sums 1, .75, 1 and 1: the second is the lowest and the third highest in accuracy.
    assert every.spearman == pytest.approx(-1 / math.sqrt(3 * 5))
    assert every.architectures == 4
    assert "go together by a Spearman correlation of +1.00; chance does as well or better with probability 0.042" in (
        neck.sentence()
    )


def test_what_is_equal_everywhere_says_nothing():
    ones = [trained("aa", "a", 0.4), trained("ab", "a", 0.3), trained("ac", "a", 0.2)]
    assert [one.component for one in score_predictions(ones, ABOVE)] == ["neck", ALL]
    same = [trained("aa", "a", 0.4), trained("ab", "b", 0.4)]
    assert score_predictions(same, ABOVE) == []


def test_places_are_those_of_the_screening_of_the_components_that_have_one(tmp_path, refused):
    settings = load_settings("tiny")
    whole = whole_space(settings)
    run = RunDirectory(tmp_path / "run")
    run.open(settings)
    assert places_above(run, whole) == {}
    names = whole["neck"]
    scores = [Score(3, name, -float(place), place + 1, removed=place > 7) for place, name in enumerate(names)]
    write_scores(run.scores("neck"), scores)
    found = places_above(run, whole)
    assert list(found) == ["neck"]
    assert [found["neck"][name] for name in (names[0], names[-1])] == [1.0, 0.0]
    assert found["neck"][names[1]] == pytest.approx((len(names) - 2) / (len(names) - 1))
    write_scores(run.scores("neck"), scores[:-1])
    with refused("holds scores of other operators"):
        places_above(run, whole)
