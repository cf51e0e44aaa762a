"""The benchmark that tells a setting's effect from a seed's: its pairs, its figures, what it refuses."""

import json
import sys

import numpy as np
import pytest

from hitdet_nni.nas.health.rank_agreement import Preferences


@pytest.fixture(scope="module")
def script(benchmark_scripts):
    return benchmark_scripts("two_settings")["two_settings"]


def test_pairs_are_of_one_seed_or_of_two(script):
    groups = script.groups(3)
    assert groups["one seed, both settings"] == (False, True, [(0, 0), (1, 1), (2, 2)])
    assert groups["two seeds, the first"][2] == [(0, 1), (0, 2), (1, 2)]
    assert len(groups["two seeds, both settings"][2]) == 6


def test_screenings_of_opposite_orders_correlate_to_minus_one(script):
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    kept = np.array([[True, True, False, False]])
    one, other = Preferences(scores, kept), Preferences(-scores, ~kept)
    found = script.summary("neck", "pairs", [one, one], [one, other], [(0, 0), (1, 1)], [1.0, 0.5])
    assert (found.spearman, found.common, found.kept, found.chance, found.layers) == (0.0, 1.0, 2, 1.0, 0.75)
    assert found.deviation == pytest.approx(2**0.5)


def test_retrainings_are_compared_seed_by_seed(script, tmp_path):
    folders = {}
    for name, values in {"first": (0.4, 0.6), "second": (0.5, 0.5)}.items():
        folders[name] = [tmp_path / f"{name}-{seed}" for seed in range(2)]
        for folder, value in zip(folders[name], values, strict=True):
            folder.mkdir()
            (folder / "metrics.json").write_text(json.dumps({"mAP": value}), encoding="utf-8")
    first, second = script.mean_precisions({**folders, "none": []})
    assert (first.mean, first.difference) == (0.5, None)
    assert second.difference == pytest.approx(0.0)
    assert second.difference_deviation == pytest.approx(0.1 * 2**0.5)


def test_settings_that_differ_are_named_without_the_seed(script):
    one = {"seed": 0, "precision": "fp32", "data": {"train": 8, "val": 4}}
    other = {"seed": 1, "precision": "bf16", "data": {"train": 8, "val": 5}}
    assert script.differences(one, other) == {"precision": ("fp32", "bf16"), "data.val": (4, 5)}


def test_lists_of_unlike_lengths_are_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["two_settings.py", "--first", "a", "b", "--second", "c"])
    with pytest.raises(SystemExit):
        script.main()
    assert "each list has a run for each seed" in capsys.readouterr().err
