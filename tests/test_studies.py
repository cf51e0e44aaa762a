"""The random baseline: what is drawn, how it is rated, what the comparison says, and the whole command."""

from __future__ import annotations

import csv
import itertools
import json
import math
import pickle
import statistics

import pytest
import torch

from hitdet_nni.architecture import Architecture, Provenance, save_architecture
from hitdet_nni.cli import main
from hitdet_nni.data.pipeline import search_loaders
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search.evaluator import detection_loss
from hitdet_nni.search.mixed import ColumnSparseMixedLayer
from hitdet_nni.search.strategy import ColumnSparseDARTS
from hitdet_nni.search_space import save_search_space
from hitdet_nni.settings import load_settings
from hitdet_nni.skeleton import Skeleton
from hitdet_nni.studies.random_architectures import random_samples
from hitdet_nni.studies.random_baseline import Rated, Summary
from hitdet_nni.studies.supernet_score import supernet_loss
from hitdet_nni.weights_file import save_weights

SPACE = {
    "backbone": ["ir_k3_d1_e3", "conv_k3_d1"],
    "neck": ["sep_k3_d1"],
    "head": ["ir_k3_d1_e1", "sep_k5_d1"],
}
SMALL = {"data.train": 16, "data.val": 4, "retrain.epochs": 1}


@pytest.fixture(scope="module")
def model(tiny_settings):
    return CostModel(tiny_settings.skeleton, 10)


def all_samples(model):
    names = [SPACE[layer.component] for layer in model.layers]
    return [dict(zip((layer.label for layer in model.layers), row, strict=True)) for row in itertools.product(*names)]


@pytest.mark.parametrize("measure", ["flops", "params"])
def test_all_architectures_within_the_limits_are_drawn(model, measure, refused):
    costs = {
        tuple(sample.values()): getattr(model.architecture(sample)["total"], measure) for sample in all_samples(model)
    }
    ordered = sorted(costs.values())
    least, most = ordered[len(ordered) // 4], ordered[len(ordered) // 2]
    within = {key for key, cost in costs.items() if least <= cost <= most}
    assert 4 < len(within) < len(costs) - 4
    limits = {"least": least, "most": most, "measure": measure}
    drawn = random_samples(model, SPACE, len(within), **limits)
    assert {tuple(sample.values()) for sample in drawn} == within
    assert [list(sample) for sample in drawn] == [[layer.label for layer in model.layers]] * len(within)
    others = random_samples(model, SPACE, len(within) - 1, exclude=[drawn[0]], **limits)
    assert drawn[0] not in others
    assert random_samples(model, SPACE, 3, seed=1, **limits) != drawn[:3]
    with refused(f"{len(within)} of {len(within) + 1}", "--architectures", "--slack"):
        random_samples(model, SPACE, len(within) + 1, **limits)


def test_draws_are_uniform(model):
    """Each of the architectures comes first about as often as any other."""
    samples = all_samples(model)
    firsts = [
        random_samples(model, SPACE, 1, least=0, most=math.inf, seed=seed)[0] for seed in range(40 * len(samples))
    ]
    counts = [firsts.count(sample) for sample in samples]
    chi_squared = sum((count - 40) ** 2 / 40 for count in counts)
    freedom = len(samples) - 1
    assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


def test_the_supernet_s_loss_is_that_of_the_supernet_with_one_candidate_left(tiny_settings, tiny_data, draw):
    """Removing every other candidate from the mixed layers computes the same detector without inheriting anything."""
    skeleton: Skeleton = tiny_settings.skeleton
    torch.manual_seed(0)
    space = HitDetectorSpace(skeleton, SPACE, len(tiny_data.classes))
    ColumnSparseDARTS().mutate_model(space)
    state = {key: value.clone() for key, value in space.detector.state_dict().items() if torch.is_tensor(value)}
    batches = list(search_loaders(tiny_data, tiny_settings.data, skeleton, 0)[2])
    found = {}
    for seed in (0, 1):
        sample = draw(skeleton, SPACE, seed)
        found[seed] = supernet_loss(sample, skeleton, len(tiny_data.classes), state, batches, seed=3)
        space.detector.load_state_dict({**space.detector.state_dict(), **state})
        for layer in space.modules():
            if isinstance(layer, ColumnSparseMixedLayer):
                layer.set_extra_state(list(layer.names))
                layer.keep_only([sample[layer.label]])
        with torch.no_grad():
            torch.manual_seed(3)
            expected = statistics.fmean(float(detection_loss(space.detector.train(), batch)) for batch in batches)
        assert found[seed] == pytest.approx(expected, rel=1e-5)
    assert found[0] != found[1]


def rated(name, loss, *accuracies):
    return Rated(name, {}, 1.0, 1.0, loss, accuracies)


def test_the_summary_in_closed_form():
    searched = rated("searched", 1.0, 0.5, 0.7)
    summary = Summary.of([searched, rated("a", 2.0, 0.2, 0.4), rated("b", 0.5, 0.6, 0.6), rated("c", 3.0, 0.1, 0.1)])
    assert (summary.searched_mean, summary.searched_deviation) == pytest.approx((0.6, math.sqrt(0.02)))
    assert (summary.random_mean, summary.random_deviation) == pytest.approx((1 / 3, statistics.stdev([0.3, 0.6, 0.1])))
    assert (summary.rank, summary.architectures, summary.share_as_good) == (2, 4, pytest.approx(1 / 3))
    # Of the six pairs five are concordant, one is tied in accuracy: tau-b = 5 / sqrt(5 * 6).
    assert summary.kendall == pytest.approx(5 / math.sqrt(30))
    ranks = [2.0, 3.0, 1.0, 4.0], [1.5, 3.0, 1.5, 4.0]
    assert summary.spearman == pytest.approx(statistics.correlation(*ranks))


def test_what_does_not_vary_has_no_rank_correlation():
    summary = Summary.of([rated("searched", 1.0, 0.0), rated("a", 2.0, 0.0)])
    assert (summary.spearman, summary.kendall, summary.searched_deviation) == (None, None, None)
    assert (summary.rank, summary.share_as_good) == (2, 1.0)


@pytest.mark.parametrize(
    "error",
    [InputError("is bad", source="a", key="b", allowed=["c"]), NonFiniteLossError("retrain", 3, [1], None)],
)
def test_errors_come_through_from_another_process(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.fixture
def searched(tmp_path, tiny_data, draw):
    """What a search leaves."""
    settings = load_settings("tiny", SMALL)
    run = RunDirectory(tmp_path / "searched")
    run.open(settings)
    save_search_space(SPACE, run.sub_spaces)
    torch.manual_seed(0)
    space = HitDetectorSpace(settings.skeleton, SPACE, len(tiny_data.classes))
    ColumnSparseDARTS().mutate_model(space)
    sample = draw(settings.skeleton, SPACE, 0)
    provenance = Provenance(classes=tiny_data.classes)
    found = Architecture(
        schema_version=1, name="found", skeleton=settings.skeleton, sample=sample, provenance=provenance
    )
    save_architecture(found, run.architecture)
    run.supernet.parent.mkdir(exist_ok=True)
    save_weights(space.detector, run.supernet)
    return run


def study(searched, out, *more):
    arguments = ["study", "random", "--run", str(searched.path), "--architectures", "2", "--seeds", "2", "--slack", "1"]
    return main([*arguments, "--out", str(out), *more])


@pytest.mark.slow
def test_a_study_from_the_command_line(searched, tmp_path, capsys):
    out = tmp_path / "study"
    assert study(searched, out, "--jobs", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((out / "study.json").read_text())
    assert (
        printed["summary"]
        == written["summary"]
        == vars(
            Summary.of([Rated(**{**row, "accuracies": tuple(row["accuracies"])}) for row in written["architectures"]])
        )
    )
    rows = list(csv.DictReader((out / "architectures.csv").open()))
    assert [row["name"] for row in rows] == ["searched", "random-01", "random-02"]
    for row, one in zip(rows, written["architectures"], strict=True):
        for seed in (0, 1):
            run = out / "runs" / f"{row['name']}-seed-{seed}"
            metrics = json.loads((run / "metrics.json").read_text())
            assert float(row[f"mAP_seed_{seed}"]) == metrics["mAP"] == one["accuracies"][seed]
            assert json.loads((run / "architecture.json").read_text())["sample"] == one["sample"]
            assert load_settings(run / "config.yml").seed == seed
    assert len({json.dumps(one["sample"]) for one in written["architectures"]}) == 3
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    # Done already: the same figures, and nothing is trained.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}
    assert study(searched, out, "--resume") == 0
    assert "the searched one is number" in capsys.readouterr().out
    assert json.loads((out / "study.json").read_text()) == written
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")} == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--slack", "0"], "--slack: got 0.0"),
        (["--seeds", "0"], "--seeds: got 0"),
        (["--architectures", "1000", "--slack", "1e-9"], "0 of 1000 random architectures"),
    ],
)
def test_what_cannot_be_studied_is_refused(searched, tmp_path, capsys, more, message):
    assert study(searched, tmp_path / "study", *more) == 2
    assert message in capsys.readouterr().err
