"""Several supernets of one screening: their shares, their mean, and what their agreement says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from hitdet_nni.config.screening_settings import ScreeningSettings
from hitdet_nni.config.settings import load_settings
from hitdet_nni.errors import InputError
from hitdet_nni.nas.screening_reliability import (
    SHORT_SCREENING,
    final_preferences,
    mean_scores,
    num_supernets,
    reliability_of,
    remedies,
    share_of,
)
from hitdet_nni.runs.reliability import Reliability, read_reliability, write_reliability
from hitdet_nni.runs.tables import Score

OPERATORS = [f"o{number:02}" for number in range(32)]


def table(scores: dict[str, float], keep: int, epoch: int = 1) -> list[Score]:
    order = sorted(scores, key=lambda name: scores[name], reverse=True)
    return [Score(epoch, name, scores[name], rank, rank > keep) for rank, name in enumerate(order, 1)]


def random_table(seed: int, truth: float = 0.0, keep: int = 8) -> list[Score]:
    """Scores that owe a share of their variance to the number of the operator."""
    noise = np.random.default_rng(seed).standard_normal(len(OPERATORS))
    values = truth * (np.arange(32) - 15.5) / 9.2 + np.sqrt(1 - truth**2) * noise
    return table(dict(zip(OPERATORS, values.tolist(), strict=True)), keep)


@pytest.mark.parametrize(
    ("supernets", "epochs", "steps", "expected"),
    [
        ("auto", 12, SHORT_SCREENING // 12, 2),
        ("auto", 12, SHORT_SCREENING // 12 + 1, 1),
        ("auto", 1, 10, 1),  # one epoch cannot be shared
        (1, 12, 10, 1),
        (3, 12, 10**6, 3),
    ],
)
def test_how_many_supernets(supernets, epochs, steps, expected):
    settings = ScreeningSettings(epochs=epochs, warmup_epochs=0, supernets=supernets)
    assert num_supernets(settings, steps) == expected


@pytest.mark.parametrize(
    ("epochs", "warmup", "supernets", "share"),
    [(12, 6, 2, (6, 3)), (3, 1, 2, (2, 1)), (5, 4, 3, (2, 1)), (2, 1, 2, (1, 0)), (4, 0, 4, (1, 0))],
)
def test_supernets_share_the_epochs(epochs, warmup, supernets, share):
    found = share_of(ScreeningSettings(epochs=epochs, warmup_epochs=warmup), supernets, 32)
    assert (found.epochs, found.warmup_epochs) == share
    assert found.samples == {2: 64, 3: 43, 4: 32}[supernets]


def test_every_operator_comes_up_in_a_share_of_the_samples():
    assert share_of(ScreeningSettings(samples=40), 2, 32).samples == 32


def test_more_supernets_than_epochs_are_refused():
    with pytest.raises(ValueError, match="supernets 3 must be at most epochs 2"):
        ScreeningSettings(epochs=2, warmup_epochs=0, supernets=3)


def test_order_of_a_gradual_removal():
    scores = [
        Score(0, "a", 0.9, 1, False),
        Score(0, "b", 0.5, 2, False),
        Score(0, "c", 0.2, 3, True),
        Score(1, "a", 0.1, 2, True),
        Score(1, "b", 0.3, 1, False),
    ]
    found = final_preferences(scores, ["c", "a", "b"])
    assert found.ranks().tolist() == [[3, 2, 1]]
    assert found.chosen.tolist() == [[False, False, True]]


def test_mean_is_that_of_the_places():
    tables = [random_table(seed) for seed in range(3)]
    found = mean_scores(tables, OPERATORS, 8)
    values = [[{score.operator: score.score for score in one}[name] for name in OPERATORS] for one in tables]
    above = np.mean([(rankdata(row) - 1) / 31 for row in values], axis=0)
    assert {score.operator: score.score for score in found} == pytest.approx(
        dict(zip(OPERATORS, above.tolist(), strict=True))
    )
    assert [score.rank for score in found] == list(range(1, 33))
    assert [score.removed for score in found] == [False] * 8 + [True] * 24
    assert all(one.score >= other.score for one, other in itertools.pairwise(found))


def test_the_mean_of_equal_tables_keeps_what_each_keeps():
    one = random_table(4)
    assert [(s.operator, s.removed) for s in mean_scores([one, one], OPERATORS, 8)] == [
        (s.operator, s.removed) for s in one
    ]


def test_reliability_of_independent_and_of_equal_tables():
    """Spearman's correlation by SciPy; ten independent pairs are no better than chance, equal tables are."""
    found = [reliability_of([random_table(2 * seed), random_table(2 * seed + 1)], OPERATORS) for seed in range(10)]
    for seed, one in enumerate(found):
        rows = [{s.operator: s.score for s in random_table(number)} for number in (2 * seed, 2 * seed + 1)]
        expected = spearmanr(*([row[name] for name in OPERATORS] for row in rows)).statistic
        assert one.spearman == pytest.approx(expected)
        assert one.chance == pytest.approx(2)
    assert [one.better_than_chance for one in found] == [False] * 10
    equal = reliability_of([random_table(0), random_table(0)], OPERATORS)
    assert (equal.spearman, equal.common, equal.kept) == (pytest.approx(1), 8, 8)
    assert equal.better_than_chance
    assert "no better alike than chance" in found[0].sentence("neck")
    assert "alike" in equal.sentence("neck")
    assert "no better" not in equal.sentence("neck")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["screening.rank_by=samples with weights.candidate_gradients=full", "pretrained weights"]),
        ({"screening.rank_by": "samples"}, ["weights.candidate_gradients=full", "pretrained weights"]),
        ({"screening.rank_by": "samples", "weights.candidate_gradients": "full", "pretrain.boxes": True}, []),
    ],
)
def test_advice_leaves_out_what_is_set_already(changes, expected):
    usual = {"screening.rank_by": "probability", "weights.candidate_gradients": "weighted"}
    found = remedies(load_settings("tiny", {**usual, **changes}))
    assert sorted(found) == sorted(["more screening.epochs", "more images", *expected])
    sentence = reliability_of([random_table(0), random_table(1)], OPERATORS).sentence("neck", found)
    assert sentence.endswith(f"; try {', '.join(found[:-1])} or {found[-1]}")


def test_a_signal_is_found_and_the_mean_agrees_by_the_formula():
    """Scores with half of their variance in common: the mean of two agrees with that of two others as foretold."""
    singles, means = [], []
    for seed in range(200):
        tables = [random_table(4 * seed + number, truth=0.7) for number in range(4)]
        pair = reliability_of(tables[:2], OPERATORS)
        singles.append(pair.spearman)
        rows = [mean_scores(tables[start : start + 2], OPERATORS, 8) for start in (0, 2)]
        values = [{s.operator: s.score for s in row} for row in rows]
        means.append(spearmanr(*([row[name] for name in OPERATORS] for row in values)).statistic)
    expected = Reliability(
        supernets=2,
        operators=32,
        spearman=float(np.mean(singles)),
        spearman_p=0,
        common=0,
        kept=8,
        chance=2,
        common_p=0,
    ).of_the_mean
    assert np.mean(means) == pytest.approx(expected, abs=0.03)
    assert np.mean(means) > np.mean(singles) + 0.1


def test_too_few_operators_cannot_tell():
    three = ["a", "b", "c"]
    one = table({"a": 3.0, "b": 2.0, "c": 1.0}, 2)
    found = reliability_of([one, one], three)
    assert found.better_than_chance is None
    assert "3 operators are too few to tell" in found.sentence("head")
    # Three supernets rank three operators alike by one chance in 36, five by one in 1296.
    assert reliability_of([one] * 3, three).better_than_chance is None
    assert reliability_of([one] * 5, three).better_than_chance is not None


def test_file_comes_back_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "neck_reliability.json"
    found = reliability_of([random_table(1), random_table(2)], OPERATORS)
    write_reliability(path, found)
    assert read_reliability(path) == found
    path.write_text('{"supernets": 0}')
    with pytest.raises(InputError, match=r"neck_reliability\.json"):
        read_reliability(path)
