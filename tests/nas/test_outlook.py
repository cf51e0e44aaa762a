"""What a search is about before its first step: against all architectures of a small space, and the steps it takes."""

import itertools

import pytest
from tables import made_up_table

from hitdet_nni import cli
from hitdet_nni.config.search_space import layer_candidates, load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable
from hitdet_nni.cost.units import UNITS
from hitdet_nni.nas.outlook import Outlook, count_in_words, stage_steps

SPACE = {
    "backbone": ["ir_k3_d1_e3", "conv_k3_d1"],
    "neck": ["sep_k3_d1"],
    "head": ["ir_k3_d1_e1", "conv_k5_d1", "sep_k3_d1"],
}


@pytest.mark.parametrize("timed", [False, True])
def test_costs_are_those_of_all_architectures(tiny, timed):
    model = CostModel(tiny, 10, latency=LatencyTable(made_up_table(tiny), "t.json") if timed else None)
    outlook = Outlook.of(model, SPACE)
    candidates = layer_candidates(tiny, SPACE)
    every = [
        model.architecture(dict(zip(candidates, names, strict=True)))["total"]
        for names in itertools.product(*candidates.values())
    ]
    assert outlook.architectures == len(every) == 2**4 * 3**2
    assert set(outlook.costs) == set(UNITS) - (set() if timed else {"latency_ms"})
    for key, found in outlook.costs.items():
        costs = [getattr(cost, UNITS[key].field) / UNITS[key].scale for cost in every]
        assert (found.least, found.largest) == (pytest.approx(min(costs)), pytest.approx(max(costs)))
        assert found.uniform == pytest.approx(sum(costs) / len(costs))
    assert ("ms" in outlook.sentence()) == timed


def test_large_numbers_are_written_short():
    assert count_in_words(999_999) == "999,999 architectures"
    assert count_in_words(32**14) == "1.2e+21 architectures"


def test_steps_of_the_stages(tiny_data):
    """16 images: two steps of 4 an epoch in each half, four in a retraining."""
    values = {"data.train": 16, "data.val": 4, "screening.epochs": 3, "search.epochs": 5, "retrain.epochs": 7}
    steps = {f"screening {component}": 6 for component in ("backbone", "neck", "head")}
    full = load_search_space("full")
    assert stage_steps(load_settings("tiny", values), tiny_data, full) == {**steps, "search": 10, "retrain": 28}
    joint = load_settings("tiny", {**values, "screening.joint": True, "screening.supernets": 2})
    assert stage_steps(joint, tiny_data, full)["screening backbone+neck+head"] == 8  # two of two epochs each
    assert set(stage_steps(joint, tiny_data, {**full, "neck": full["neck"][:8]})) == {
        "screening backbone+head",
        "search",
        "retrain",
    }
    assert set(stage_steps(joint, tiny_data, None)) == {"search", "retrain"}


def test_a_dry_run_says_it_and_writes_nothing(tmp_path, capsys, caplog):
    save_search_space(SPACE, tmp_path / "space.yml")
    small = ["--set", "data.train=16", "--set", "data.val=4"]
    arguments = ["search", "--config", "tiny", *small, "--out", str(tmp_path / "run"), "--dry-run"]
    assert cli.main([*arguments, "--sub-spaces", str(tmp_path / "space.yml")]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("144 architectures", "GFLOPs", "M parameters", "search: 4 steps"))
    assert "screening" not in printed
    unused = [
        "--set",
        f"space={tmp_path / 'space.yml'}",
        "--set",
        "screening.keep.neck=2",
        "--set",
        "screening.keep.backbone=1",
    ]
    assert cli.main([*arguments, *unused]) == 2
    assert "screening.keep.neck: got 2; allowed: 1 to 1" in capsys.readouterr().err
    assert cli.main([*arguments, *unused, "--sub-spaces", str(tmp_path / "space.yml")]) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert "screening head: 4 steps" in capsys.readouterr().out
    assert cli.main([*arguments, "--set", "pretrain.boxes=true", "--set", "screening.supernets=2"]) == 0
    assert "the backbone is pretrained 7 times, for 10 epochs each" in capsys.readouterr().out
    assert cli.main([*arguments, "--set", "pretrain.boxes=true", "--sub-spaces", str(tmp_path / "space.yml")]) == 0
    assert "the backbone is pretrained once, for 10 epochs each" in capsys.readouterr().out
    assert cli.main([*arguments, "--set", "search.budget={gflops: 1e-9}"]) == 2
    assert "or more" in capsys.readouterr().err
    assert cli.main([*arguments, "--set", "search.budget={gflops: 2}"]) == 0
    assert "search.budget.gflops: 2 GFLOPs bounds nothing: no architecture of the space" in caplog.text
    caplog.clear()
    assert cli.main([*arguments, "--set", "search.budget={gflops: 0.1}"]) == 0
    assert "bounds nothing" not in caplog.text
    assert not (tmp_path / "run").exists()
