"""Kept sub-spaces against random ones: what is drawn, what the comparison says, and the whole command."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter

import pytest

from hitdet_nni.cli import main
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import component_of
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.nas.checks import whole_space
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.retrainings import Trained
from hitdet_nni.studies.screened_space import ScreeningComparison, random_space, samples_of_random_spaces, typical_cost

KEPT = {
    "backbone": ["ir_k3_d1_e3", "ir_k5_d1_e3"],
    "neck": ["sep_k3_d1", "conv_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1"],
}


@pytest.fixture(scope="module")
def model(tiny_settings):
    return CostModel(tiny_settings.skeleton, 10)


@pytest.fixture(scope="module")
def whole(tiny_settings):
    return whole_space(tiny_settings)


def test_random_spaces_have_the_size_and_every_operator_equally_often(whole):
    rng = random.Random(0)
    drawn = [random_space(whole, KEPT, rng) for _ in range(3200)]
    for component, kept in KEPT.items():
        counts = Counter(name for space in drawn for name in space[component])
        assert all(len(set(space[component])) == len(kept) for space in drawn)
        expected = 3200 * len(kept) / len(whole[component])
        assert set(counts) == set(whole[component])
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_architectures_of_random_spaces_have_the_cost_and_few_operators(model, whole):
    most = typical_cost(model, KEPT, 0)
    drawn = samples_of_random_spaces(model, whole, KEPT, 6, least=0.8 * most, most=most, seed=0)
    assert len({tuple(sample.values()) for sample in drawn}) == 6
    for sample in drawn:
        assert 0.8 * most <= model.architecture(sample)["total"].flops <= most
        for component, kept in KEPT.items():
            assert len({name for label, name in sample.items() if component_of(label) == component}) <= len(kept)
    again = samples_of_random_spaces(model, whole, KEPT, 6, least=0.8 * most, most=most, seed=0)
    assert drawn == again


def test_a_cost_that_nothing_has_is_refused(model, whole, refused, monkeypatch):
    monkeypatch.setattr("hitdet_nni.studies.screened_space.MOST_SPACES", 3)
    with refused("0 of 1 random architectures"):
        samples_of_random_spaces(model, whole, KEPT, 1, least=1, most=2, seed=0)


def of(*accuracies):
    return [Trained(str(number), {}, 1.0, 1.0, (value,)) for number, value in enumerate(accuracies)]


def test_the_p_value_counts_all_exchanges():
    """Of 20 ways to call three of six kept, one puts them as far ahead as they are."""
    found = ScreeningComparison.of(of(0.4, 0.5, 0.6), of(0.1, 0.2, 0.3))
    assert found.p_value == pytest.approx(1 / 20)
    assert (found.kept_mean, found.random_mean) == pytest.approx((0.5, 0.2))
    assert (found.kept_deviation, found.random_deviation) == pytest.approx((0.1, 0.1))
    assert found.sentences()[-1].endswith(
        "ahead by 0.300; chance does as well for them, or better, with probability 0.05"
    )
    behind = ScreeningComparison.of(of(0.1, 0.2, 0.3), of(0.4, 0.5, 0.6))
    assert behind.p_value == 1
    assert "behind by 0.300" in behind.sentences()[-1]
    assert ScreeningComparison.of(of(0.3, 0.1), of(0.1, 0.3)).p_value == pytest.approx(5 / 6)


@pytest.fixture
def screened(tmp_path):
    """What a screening leaves, no search."""
    run = RunDirectory(tmp_path / "screened")
    run.open(load_settings("tiny", {"data.train": 16, "data.val": 4, "retrain.epochs": 1}))
    save_search_space(KEPT, run.sub_spaces)
    return run


@pytest.mark.slow
def test_screening_from_the_command_line(screened, tmp_path, capsys):
    out = tmp_path / "study"
    command = ["study", "screening", "--run", str(screened.path), "--architectures", "2", "--slack", "1"]
    assert main([*command, "--jobs", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "kept sub-spaces: mAP" in printed
    report = json.loads((out / "screening.json").read_text())
    rows = report["rows"]
    assert [row["architecture"] for row in rows] == ["kept-01", "kept-02", "random-01", "random-02"]
    assert [row["architecture"] for row in csv.DictReader((out / "screening.csv").open())] == list(report["samples"])
    for name, sample in report["samples"].items():
        assert load_architecture(out / "runs" / f"{name}-seed-0" / "architecture.json").sample == sample
        assert name.startswith("random") or all(
            operator in KEPT[component_of(label)] for label, operator in sample.items()
        )
    assert report["summary"]["p_value"] in (pytest.approx(number / 6) for number in range(1, 7))
    assert report["predictions"] == []  # the run has sub-spaces, and no scores
    assert (out / "screening.png").read_bytes().startswith(b"\x89PNG")


def test_a_small_sub_space_has_a_typical_cost(model):
    space = {component: names[:1] for component, names in KEPT.items()}
    sample = {layer.label: space[layer.component][0] for layer in model.layers}
    assert typical_cost(model, space, 0) == model.architecture(sample)["total"].flops


def test_a_single_architecture_is_refused(screened, tmp_path, capsys):
    command = ["study", "screening", "--run", str(screened.path), "--out", str(tmp_path / "study")]
    assert main([*command, "--architectures", "1"]) == 2
    assert "--architectures: got 1; allowed: 2 or more" in capsys.readouterr().err


def test_a_directory_without_a_screening_is_refused(screened, tmp_path, capsys):
    screened.sub_spaces.unlink()
    assert main(["study", "screening", "--run", str(screened.path), "--out", str(tmp_path / "study")]) == 2
    assert "sub_spaces.yml" in capsys.readouterr().err
