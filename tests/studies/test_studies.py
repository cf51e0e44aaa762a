"""The random baseline: what is drawn, how it is rated, what the comparison says, and the whole command."""

from __future__ import annotations

import csv
import itertools
import json
import math
import pickle
import re
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inherited_losses import supernet_loss
from tables import made_up_table

from hitdet_nni.cli import build_parser, main
from hitdet_nni.commands import find_modules
from hitdet_nni.commands.study import KINDS
from hitdet_nni.config.architecture import Architecture, Provenance, load_architecture, save_architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS, Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable, save_latency_table
from hitdet_nni.data.loaders import architecture_loader, search_loaders
from hitdet_nni.engine.weights_file import read_state, save_weights
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.screening_reliability import ranked
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import Score, read_scores
from hitdet_nni.studies import retrainings
from hitdet_nni.studies.operator_ablation import (
    FIGURE_3,
    OperatorEffect,
    effects,
    insertion_architectures,
    insertions,
)
from hitdet_nni.studies.random_architectures import drawn_samples, samples_of_cost
from hitdet_nni.studies.random_baseline import Summary, draw_random_baselines, rate_by_supernet
from hitdet_nni.studies.recipes import RECIPES, TrainedRecipe, recipe_sentences, with_recipe
from hitdet_nni.studies.retrainings import Protocol, Trained
from hitdet_nni.studies.sparsity_ablation import ScoreCurves, reading_rows, sparse_screenings
from hitdet_nni.studies.sub_space_ablation import common_sub_space

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


@pytest.mark.parametrize("unit", ["gflops", "params_m"])
def test_all_architectures_within_the_limits_are_drawn(model, unit, refused):
    totals = {tuple(sample.values()): model.architecture(sample)["total"] for sample in all_samples(model)}
    costs = {key: total.flops if unit == "gflops" else total.params for key, total in totals.items()}
    ordered = sorted(costs.values())
    least, most = ordered[len(ordered) // 4], ordered[len(ordered) // 2]
    within = {key for key, cost in costs.items() if least <= cost <= most}
    assert 4 < len(within) < len(costs) - 4
    limits = {"least": least, "most": most, "unit": unit}
    drawn = drawn_samples(model, SPACE, len(within), **limits)
    assert {tuple(sample.values()) for sample in drawn} == within
    assert [list(sample) for sample in drawn] == [[layer.label for layer in model.layers]] * len(within)
    others = drawn_samples(model, SPACE, len(within) - 1, exclude=[drawn[0]], **limits)
    assert drawn[0] not in others
    assert drawn_samples(model, SPACE, 3, seed=1, **limits) != drawn[:3]
    assert len(drawn_samples(model, SPACE, len(within) + 1, **limits)) == len(within)
    assert samples_of_cost(model, SPACE, len(within), most, (most - least) / most, unit=unit) == drawn
    with refused(f"{len(within)} of {len(within) + 1}", "--architectures", "--slack"):
        samples_of_cost(model, SPACE, len(within) + 1, most, (most - least) / most, unit=unit)


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
                layer.prune_to([sample[layer.label]])
        with torch.no_grad():
            torch.manual_seed(3)
            expected = statistics.fmean(float(detection_loss(space.detector.train(), batch)) for batch in batches)
        assert found[seed] == pytest.approx(expected, rel=1e-5)
    assert found[0] != found[1]


def trained(name, *accuracies):
    return Trained(name, {}, 1.0, 1.0, accuracies)


def test_the_summary_in_closed_form():
    found = [trained("searched", 0.5, 0.7), trained("a", 0.2, 0.4), trained("b", 0.6, 0.6), trained("c", 0.1, 0.1)]
    summary = Summary.of(found, {"searched": 1.0, "a": 2.0, "b": 0.5, "c": 3.0})
    assert (summary.searched_mean, summary.searched_deviation) == pytest.approx((0.6, math.sqrt(0.02)))
    assert (summary.random_mean, summary.random_deviation) == pytest.approx((1 / 3, statistics.stdev([0.3, 0.6, 0.1])))
    assert (summary.rank, summary.architectures, summary.share_as_good) == (2, 4, pytest.approx(1 / 3))
    # Of the six pairs five are concordant, one is tied in accuracy: tau-b = 5 / sqrt(5 * 6).
    assert summary.kendall == pytest.approx(5 / math.sqrt(30))
    ranks = [2.0, 3.0, 1.0, 4.0], [1.5, 3.0, 1.5, 4.0]
    assert summary.spearman == pytest.approx(statistics.correlation(*ranks))


def test_what_does_not_vary_has_no_rank_correlation():
    summary = Summary.of([trained("searched", 0.0), trained("a", 0.0)], {"searched": 1.0, "a": 2.0})
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


def test_every_command_of_the_page_is_one():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    kinds = {build_parser().parse_args(shlex.split(command)[1:]).kind for command in commands}
    assert kinds == set(find_modules(KINDS))


def study(kind, searched, out, *more):
    arguments = ["study", kind, "--run", str(searched.path), "--seeds", "2", "--out", str(out), *more]
    return main([*arguments, *(("--architectures", "2", "--slack", "1") if kind == "random" else ())])


def read(out, kind):
    """The figures of a study, once from the JSON and once from the CSV."""
    report = json.loads((out / f"{kind}.json").read_text())
    assert report["study"] == kind
    rows = list(csv.DictReader((out / f"{kind}.csv").open()))
    assert [list(row.values()) for row in rows] == [
        ["" if value is None else str(value) for value in row.values()] for row in report["rows"]
    ]
    assert (out / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    return report


def test_architectures_are_rated_by_what_they_inherit(searched, tiny_data, draw):
    """On images of the half for architecture parameters, each as a detector of its own with the supernet's weights."""
    settings = load_settings(searched.config)
    found = load_architecture(searched.architecture)
    other = found.model_copy(update={"sample": draw(settings.skeleton, SPACE, 1)})
    rated = rate_by_supernet(searched, settings, tiny_data, {"found": found, "other": other})
    data, images = replace(tiny_data, halves=searched.halves), settings.search.sample_images
    batches = list(architecture_loader(data, settings.data, settings.skeleton, settings.seed, images))
    state = read_state(searched.supernet)
    for name, one in (("found", found), ("other", other)):
        expected = []
        for number, batch in enumerate(batches):  # RoIs are sampled by a seed for each batch
            seed = settings.seed + number
            expected.append(supernet_loss(one.sample, one.skeleton, len(tiny_data.classes), state, [batch], seed))
        assert rated[name] == pytest.approx(statistics.fmean(expected), rel=1e-4)
    assert rated["found"] != rated["other"]


def test_random_ones_take_as_many_milliseconds_where_the_search_was_bounded_by_them(searched, tiny_data, tmp_path):
    settings = load_settings(searched.config)
    content = made_up_table(settings.skeleton, space=SPACE)
    save_latency_table(content, searched.latency)
    budget = {"latency_ms": 9, "table": tmp_path / "moved-since.json"}
    bounded = settings.model_copy(
        update={"search": settings.search.model_copy(update={"budget": BudgetSettings(**budget)})}
    )
    drawn = draw_random_baselines(searched, bounded, tiny_data, 4, 0.2)
    model = CostModel(settings.skeleton, len(tiny_data.classes), latency=LatencyTable(content, searched.latency))
    times = [model.architecture(one.sample)["total"].nanoseconds for one in drawn.values()]
    assert len(times) == 5
    assert all(0.8 * times[0] <= time <= times[0] for time in times[1:])
    assert {one.provenance.source for name, one in drawn.items() if name != "searched"} == {"random"}


def test_retrainings_of_several_seeds_have_the_same_images(tmp_path):
    settings = load_settings("tiny", {"seed": 2**32 - 1, "data.seed": None})
    jobs = []

    def run_jobs(work, asked, processes, on_result):
        jobs.extend(asked)
        return [{"mAP": 0.5, "params_m": 1.0, "gflops": 1.0} for _ in asked]

    with pytest.MonkeyPatch.context() as context:
        context.setattr(retrainings, "run_jobs", run_jobs)
        Protocol(settings, 2, tmp_path).retrain({"a": Architecture.model_construct(sample={})})
    assert [(job.settings.seed, job.settings.data.seed) for job in jobs] == [(2**32 - 1, 2**32 - 1), (0, 2**32 - 1)]
    assert [job.folder.name for job in jobs] == ["a-seed-4294967295", "a-seed-0"]


@pytest.mark.slow
def test_random_from_the_command_line(searched, tmp_path, capsys):
    out = tmp_path / "study"
    assert study("random", searched, out, "--jobs", "2", "--json") == 0
    printed, written = json.loads(capsys.readouterr().out), read(out, "random")
    assert printed == written
    rows, samples = written["rows"], written["samples"]
    assert [row["architecture"] for row in rows] == list(samples) == ["searched", "random-01", "random-02"]
    assert len({json.dumps(sample) for sample in samples.values()}) == 3
    found = []
    for row in rows:
        name = row["architecture"]
        for seed in (0, 1):
            run = out / "runs" / f"{name}-seed-{seed}"
            metrics = json.loads((run / "metrics.json").read_text())
            assert row[f"mAP_{seed + 1}"] == metrics["mAP"]
            assert json.loads((run / "architecture.json").read_text())["sample"] == samples[name]
            assert load_settings(run / "config.yml").seed == seed
        found.append(trained(name, row["mAP_1"], row["mAP_2"]))
    assert written["summary"] == vars(Summary.of(found, {row["architecture"]: row["supernet_loss"] for row in rows}))
    assert json.loads((out / "metadata.json").read_text())["seconds"]["study"] > 0
    # Done already: the same figures, and nothing is trained.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}
    assert study("random", searched, out, "--resume") == 0
    assert "the searched one is number" in capsys.readouterr().out
    assert read(out, "random") == written
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")} == before


def test_recipes_from_the_command_line(searched, tmp_path, capsys):
    """Each recipe with each seed, in runs whose settings are the recipe's; the others are compared with the first."""
    out = tmp_path / "study"
    assert study("recipes", searched, out, "--recipe", "paper", "--recipe", "adamw", "--seeds", "1") == 0
    said = capsys.readouterr().out
    report = read(out, "recipes")
    assert [row["recipe"] for row in report["rows"]] == list(report["recipes"]) == ["paper", "adamw"]
    ours = {name: load_settings(out / "runs" / f"{name}-seed-0" / "config.yml") for name in ("paper", "adamw")}
    chosen = {name: (one.retrain.optimizer, one.data.augment, one.retrain.ema) for name, one in ours.items()}
    assert chosen == {"paper": ("sgd", "flip", None), "adamw": ("adamw", "standard", 0.002)}
    assert ours["adamw"].retrain.epochs == ours["paper"].retrain.epochs == report["epochs"] == 1
    for row in report["rows"]:
        metrics = json.loads((out / "runs" / f"{row['recipe']}-seed-0" / "metrics.json").read_text())
        assert row["mAP_1"] == row["mean_mAP"] == metrics["mAP"]
        assert row["seconds"] > 0
    assert "adamw against paper: " in said


def test_a_schedule_of_steps_has_them_where_the_paper_has_them():
    preset = load_settings("small", {"data.builtin": "digits", "retrain.epochs": 12, "retrain.schedule": "cosine"})
    assert with_recipe(preset, RECIPES["paper"]).retrain.milestones == (8, 11)
    longer = preset.model_copy(update={"retrain": preset.retrain.model_copy(update={"epochs": 120})})
    assert with_recipe(longer, RECIPES["paper"]).retrain.milestones == (80, 110)
    own = load_settings("digits")
    assert with_recipe(own, RECIPES["paper"]).retrain.milestones == own.retrain.milestones


def test_what_recipes_say():
    trained = [
        TrainedRecipe("paper", (0.1, 0.2, 0.3), 1.0),
        TrainedRecipe("strong", (0.2, 0.3, 0.5), 1.0),
        TrainedRecipe("standard", (0.0, 0.3, 0.3), 1.0),
    ]
    assert recipe_sentences(trained) == [  # p: one of the eight ways to sign three differences
        "strong against paper: +0.133, ahead in 3 of 3 seeds, p 0.12",
        "standard against paper: +0.000, ahead in 1 of 3 seeds, p 0.75",
    ]


@pytest.mark.parametrize(("options", "names"), [(["best"], "paper, averaged"), (["paper", "paper"], "twice")])
def test_recipes_that_there_are_not(searched, tmp_path, capsys, options, names):
    arguments = [part for name in options for part in ("--recipe", name)]
    assert study("recipes", searched, tmp_path / "study", *arguments) == 2
    error = capsys.readouterr().err
    assert "--recipe" in error
    assert names in error
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_parts_from_the_command_line(searched, tmp_path, capsys):
    out = tmp_path / "study"
    assert study("parts", searched, out, "--seeds", "1") == 0
    assert "all searched" in capsys.readouterr().out
    report = read(out, "parts")
    assert [row["architecture"] for row in report["rows"]] == [
        "baseline",
        "searched backbone",
        "searched neck",
        "searched head",
        "all searched",
    ]
    samples = report["samples"]
    baseline, found = samples["baseline"], samples["all searched"]
    for component in COMPONENTS:
        for label, operator in samples[f"searched {component}"].items():
            assert operator == (found if label.startswith(component) else baseline)[label]


def write_scores(run):
    """Screenings that end with the orders abc, bca and cab of their operators, the last one removed."""
    names = {"a": "sep_k3_d1", "b": "sep_k5_d1", "c": "conv_k3_d1"}
    for component, (first, second, third) in zip(COMPONENTS, ("abc", "bca", "cab"), strict=True):
        epochs = (
            [(first, 0.4, 1, 0), (second, 0.3, 2, 0), (third, 0.2, 3, 1)],
            [(first, 0.5, 1, 0), (second, 0.4, 2, 0)],
        )
        run.write_scores(
            component,
            [
                Score(epoch, names[letter], score, rank, bool(removed))
                for epoch, rows in enumerate(epochs)
                for letter, score, rank, removed in rows
            ],
        )


def test_a_common_sub_space_has_the_best_places_over_all_components(tmp_path, refused):
    run = RunDirectory(tmp_path)
    run.screening.mkdir()
    write_scores(run)
    # Places 0 + 2 + 1, 1 + 0 + 2 and 2 + 1 + 0: all equal; the head's scores again for the neck settle it.
    run.scores("neck").write_text(run.scores("head").read_text())
    assert common_sub_space(run, 2) == {component: ["sep_k3_d1", "conv_k3_d1"] for component in COMPONENTS}
    # What the neck has not been screened with has no part.
    kept = [line for line in run.scores("neck").read_text().splitlines() if "conv_k3_d1" not in line]
    run.scores("neck").write_text("\n".join(kept))
    assert common_sub_space(run, 2) == {component: ["sep_k3_d1", "sep_k5_d1"] for component in COMPONENTS}
    with refused("2 operators in common", "screening"):
        common_sub_space(run, 3)
    run.scores("neck").write_text("nonsense")
    with refused("neck.csv"):
        common_sub_space(run, 2)
    # A component that was kept whole prefers none.
    run.scores("neck").unlink()
    with refused("sub_spaces.yml"):
        common_sub_space(run, 2)
    names = ["conv_k3_d1", "sep_k3_d1", "sep_k5_d1"]
    save_search_space(dict.fromkeys(COMPONENTS, names), run.sub_spaces)
    places = {name: [0, 0] for name in names}
    for number, component in enumerate(("backbone", "head")):
        scores = read_scores(run.scores(component))
        for place, name in enumerate(ranked(scores, list(dict.fromkeys(score.operator for score in scores)))):
            places[name][number] = place
    best = sorted(names, key=lambda name: sum(places[name]))[:1]
    assert common_sub_space(run, 1) == dict.fromkeys(COMPONENTS, best)


@pytest.mark.slow
def test_sub_spaces_from_the_command_line(searched, tmp_path, capsys):
    write_scores(searched)
    out = tmp_path / "study"
    more = ("--seeds", "1", "--set", "search.epochs=2", "--set", "search.warmup_epochs=1")
    assert study("sub-spaces", searched, out, *more) == 0
    report = read(out, "sub-spaces")
    assert [row["architecture"] for row in report["rows"]] == ["1 sub search space", "3 sub search spaces"]
    (common,) = {tuple(names) for names in load_search_space(out / "one-sub-space/screening/sub_spaces.yml").values()}
    assert set(report["samples"]["1 sub search space"].values()) <= set(common)
    assert re.search(r"^search  epoch 2/2  loss .*  val loss ", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("repeats", [1, 2, 6])
def test_insertions_take_each_layer_once(tiny_settings, repeats):
    """Twice the same layer would be the same training, and the baseline's own operator is the baseline."""
    own = tiny_settings.screening.fixed.head
    operators = ["conv_k3_d1", "conv_k5_d3", own]
    chosen = insertions(tiny_settings, operators, ["backbone", "head"], repeats)
    assert len(chosen) == len({one.name for one in chosen}) == len({(one.operator, one.label) for one in chosen})
    for component in ("backbone", "head"):
        labels = tiny_settings.skeleton.labels(component)
        rows = [
            [one.label for one in chosen if (one.component, one.operator) == (component, name)] for name in operators
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) == min(repeats, len(labels))
        baseline = getattr(tiny_settings.screening.fixed, component)
        assert rows[2] == ([] if own == baseline else rows[0])


def test_an_insertion_changes_one_layer_of_the_baseline(tiny_settings, tiny_data):
    chosen = insertions(tiny_settings, FIGURE_3, repeats=1)
    found = insertion_architectures(chosen, tiny_settings, tiny_data)
    baseline = found["baseline"].sample
    assert set(baseline.values()) == set(tiny_settings.screening.fixed.model_dump().values())
    for one in chosen:
        sample = found[one.name].sample
        changed = {label: sample[label] for label in sample if sample[label] != baseline[label]}
        assert changed == {one.label: one.operator}


def test_effects_gather_the_repetitions(tiny_settings):
    chosen = insertions(tiny_settings, ["conv_k3_d1"], ["neck"], 3)
    found = {one.name: trained(one.name, value) for one, value in zip(chosen, (0.1, 0.2, 0.6), strict=True)}
    (effect,) = effects(chosen, found)
    assert effect == OperatorEffect("neck", "conv_k3_d1", (0.1, 0.2, 0.6))
    assert (effect.mean, effect.deviation) == pytest.approx((0.3, math.sqrt(0.07)))


def overrides():
    return [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_operators_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "study"
    arguments = ["study", "operators", "--config", "tiny", *overrides(), "--repeats", "2", "--parts", "neck"]
    assert main([*arguments, "--operators", "conv_k3_d1", "sep_k5_d1", "--out", str(out)]) == 0
    assert "5/5" in capsys.readouterr().out
    rows = read(out, "operators")["rows"]
    assert [(row["part"], row["operator"], row["repeats"]) for row in rows] == [
        ("-", "baseline", 1),
        ("neck", "conv_k3_d1", 2),
        ("neck", "sep_k5_d1", 2),
    ]


@pytest.mark.slow
def test_sparsity_from_the_command_line(tmp_path, capsys):
    space = tmp_path / "space.yml"
    save_search_space(SPACE, space)
    out = tmp_path / "study"
    few = [part for component in COMPONENTS for part in ("--set", f"screening.keep.{component}=1")]
    arguments = ["study", "sparsity", "--config", "tiny", *overrides(), *few, "--set", f"space={space}"]
    assert main([*arguments, "--weights", "0", "0.1", "--out", str(out)]) == 0
    report = read(out, "sparsity")
    readings = [("softmax", 0.0), ("softmax", 0.1), ("positive", 0.0), ("positive", 0.1)]
    assert [(row["gates"], row["mu"]) for row in report["rows"]] == readings
    curves = list(csv.DictReader((out / "scores.csv").open()))
    assert len(curves) == len(readings) * 2 * 2 * len(SPACE["backbone"])
    layers = len(load_settings("tiny").skeleton.labels("backbone"))
    for row in report["rows"]:
        own = [one for one in curves if one["gates"] == row["gates"] and float(one["mu"]) == row["mu"]]
        last = [[float(one["score"]) for one in own if one["epoch"] == "1" and one["seed"] == seed] for seed in "01"]
        assert row["deviation"] == pytest.approx(statistics.fmean(map(statistics.pstdev, last)))
        assert row["range"] == pytest.approx(statistics.fmean(max(one) - min(one) for one in last))
        assert -1 <= row["rho"] <= 1
        assert row["of"] == 1
        if row["gates"] == "softmax":
            assert [sum(one) for one in last] == pytest.approx([layers, layers], rel=1e-5)
    capsys.readouterr()
    assert main([*arguments, "--weights", "-1", "--out", str(tmp_path / "refused")]) == 2
    assert "--weights: got -1.0" in capsys.readouterr().err


def test_sparsity_ranks_by_what_mu_is_about(tmp_path):
    space = {component: SPACE[component] for component in COMPONENTS}
    for given, used in (("samples", "probability"), ("probability", "probability"), ("norm", "norm")):
        settings = load_settings("tiny", {"screening.rank_by": given, "seed": 7})
        jobs = sparse_screenings(settings, "neck", space, [("softmax", 0.0), ("positive", 0.1)], 2, tmp_path)
        assert {job.settings.screening.rank_by for job in jobs} == {used}
        assert [job.reading for job in jobs] == [("softmax", 0.0)] * 2 + [("positive", 0.1)] * 2
        assert [job.settings.seed for job in jobs] == [7, 8, 7, 8]
        assert len({job.folder for job in jobs}) == 4
        assert {job.settings.data.seed for job in jobs} == {7}
        assert {job.settings.screening.supernets for job in jobs} == {1}


def test_sparsity_needs_a_seed(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["study", "sparsity", "--config", "tiny", "--seeds", "0", "--out", str(out)]) == 2
    assert "--seeds: got 0" in capsys.readouterr().err
    assert not out.exists()


def test_spread_and_agreement_stand_side_by_side():
    """Two seeds of one order and two of opposite orders, by hand."""
    names = [f"o{number}" for number in range(10)]
    up = {name: (0.0, float(number)) for number, name in enumerate(names)}
    down = {name: (0.0, float(9 - number)) for number, name in enumerate(names)}
    found = [
        ScoreCurves("softmax", 0.1, 0, up),
        ScoreCurves("softmax", 0.1, 1, up),
        ScoreCurves("positive", 0.1, 0, up),
        ScoreCurves("positive", 0.1, 1, down),
    ]
    same, opposite = reading_rows(found, 4)
    assert same["deviation"] == pytest.approx(statistics.pstdev(range(10)))
    assert same["range"] == 9
    assert same["relative"] == pytest.approx(statistics.pstdev(range(10)) / 4.5)
    assert (same["rho"], same["common"], same["of"], same["chance"]) == (pytest.approx(1), 4, 4, pytest.approx(1.6))
    assert (opposite["rho"], opposite["common"]) == (pytest.approx(-1), 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--slack", "0"], "--slack: got 0.0"),
        (["--seeds", "0"], "--seeds: got 0"),
        (["--architectures", "1000", "--slack", "1e-9"], "0 of 1000 random architectures"),
    ],
)
def test_what_cannot_be_studied_is_refused(searched, tmp_path, capsys, more, message):
    assert main(["study", "random", "--run", str(searched.path), "--out", str(tmp_path / "study"), *more]) == 2
    assert message in capsys.readouterr().err
