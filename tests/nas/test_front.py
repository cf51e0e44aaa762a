"""A front of a supernet: planted losses against the exact front, the restored supernet, interruption, files."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from inherited_losses import supernet_loss
from killing import KilledError, kill_in_sample
from tables import made_up_table

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import layer_candidates, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable, save_latency_table
from hitdet_nni.data.loaders import architecture_loader
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.machine import processor
from hitdet_nni.engine.weights_file import read_state
from hitdet_nni.nas import run_front
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.cost_term import BudgetedCost
from hitdet_nni.nas.front import FrontSearch, best_within, known, on_front
from hitdet_nni.nas.sample_evaluation import architecture_losses
from hitdet_nni.nas.sampled_supernet import SampledSupernet
from hitdet_nni.pipeline import screening
from hitdet_nni.runs.front import FrontRow, KnownLosses, chosen_point, points_within, read_front, write_front
from hitdet_nni.runs.front_budgets import budget_name, read_budgets
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {
    "backbone": ["ir_k3_d1_e3", "conv_k3_d1", "sep_k3_d1"],
    "neck": ["sep_k3_d1", "conv_k3_d1"],
    "head": ["ir_k3_d1_e1"],
}


@pytest.fixture(scope="module")
def model(tiny):
    return CostModel(tiny, 10, latency=LatencyTable(made_up_table(tiny), "table.json"))


@pytest.fixture(scope="module")
def candidates(tiny):
    return {label: names for label, names in layer_candidates(tiny, SPACE).items() if len(names) > 1}


def planted(candidates, seed):
    generator = np.random.default_rng(seed)
    return {
        label: dict(zip(names, generator.normal(size=len(names)).tolist(), strict=True))
        for label, names in candidates.items()
    }


def total(effects, sample):
    return sum(effects[label][name] for label, name in sample.items() if label in effects)


@pytest.mark.parametrize("key", ["gflops", "params_m", "latency_ms"])
def test_a_planted_front_is_found(model, candidates, key):
    """20,736 architectures of which 120 are tried: at every cost what is found is nearly the best of all."""
    effects = planted(candidates, 1)
    search = FrontSearch(model, SPACE, key, candidates)
    evaluated = []

    def losses(samples):
        evaluated.extend(samples)
        return [total(effects, sample) for sample in samples]

    tried = search.explore(losses, 120, 0)
    finalists = search.compare(
        search.nominate(tried, tried[0].sample, []), losses, {"head/l01": "ir_k3_d1_e1", "head/l02": "ir_k3_d1_e1"}
    )
    everything = [dict(zip(candidates, names, strict=True)) for names in itertools.product(*candidates.values())]
    costs = np.array([search.cost(sample) for sample in everything])
    sums = np.array([total(effects, sample) for sample in everything])
    assert search.limits[-1] == costs.max()
    for limit in search.limits:
        exact = sums[costs <= limit].min()
        assert best_within(finalists, limit).loss <= exact + 0.1 * sums.std()
    # What each costs is by the closed form, the fixed layers included.
    field, scale = {"gflops": ("flops", 1e9), "params_m": ("params", 1e6), "latency_ms": ("nanoseconds", 1e6)}[key]
    for one in finalists:
        assert one.cost == pytest.approx(getattr(model.architecture(one.sample)["total"], field) / scale)
    best = [one for one, front in zip(finalists, on_front(finalists), strict=True) if front]
    assert len(best) >= 5
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in itertools.pairwise(best))
    assert len({tuple(sample.values()) for sample in evaluated[: len(tried)]}) == len(tried)


def test_finalists_are_of_four_origins(model, candidates):
    effects = planted(candidates, 0)
    search = FrontSearch(model, SPACE, "gflops", candidates)
    tried = search.explore(lambda samples: [total(effects, sample) for sample in samples], 60, 0)
    decided = {label: names[0] for label, names in candidates.items()}
    searched = {label: names[-1] for label, names in candidates.items()}
    finalists = search.nominate(tried, searched, [decided, searched])
    assert finalists[tuple(decided.values())] == "parameters"
    assert finalists[tuple(searched.values())] == "search"
    assert set(finalists.values()) == {"search", "parameters", "model", "sample"}
    looked_at = {tuple(one.sample[label] for label in candidates) for one in tried}
    assert all(key in looked_at for key, origin in finalists.items() if origin == "sample")


def test_budgets_have_their_best(model, candidates, refused):
    effects = planted(candidates, 2)
    least = FrontSearch(model, SPACE, "gflops", candidates).limits[0]
    search = FrontSearch(model, SPACE, "gflops", candidates, [1.3 * least])
    assert 1.3 * least in search.limits

    def losses(samples):
        return [total(effects, sample) for sample in samples]

    tried = search.explore(losses, 100, 0)
    finalists = search.compare(search.nominate(tried, tried[0].sample, []), losses, {})
    within = BudgetedCost(Budget(model, SPACE, BudgetSettings(gflops=1.3 * least)), 0.0, 1.0)
    exact = total(effects, within.decode_losses(effects, candidates))
    found = best_within(finalists, 1.3 * least)
    assert found.loss == pytest.approx(exact, abs=0.2)
    assert found.cost <= 1.3 * least
    with refused("--budget", "or more"):
        FrontSearch(model, SPACE, "gflops", candidates, [0.5 * least])


@pytest.mark.parametrize("key", ["gflops", "params_m", "latency_ms"])
def test_of_random_ones_that_fill_a_budget_the_best_are_compared(key, model, candidates, caplog):
    effects = planted(candidates, 3)
    least, most = FrontSearch(model, SPACE, key, candidates).ends
    budget = (least + most) / 2
    search = FrontSearch(model, SPACE, key, candidates, [budget, 2 * most])
    tried = []

    def losses(samples):
        tried.append(samples)
        return [total(effects, sample) for sample in samples]

    with caplog.at_level(logging.INFO, "hitdet_nni.nas.front"):
        best = search.fill(losses, 128, 0)
    assert "0 of 64 random architectures that fill" in caplog.text  # none costs nearly twice the most
    assert [len(samples) for samples in tried] == [64, 0]
    assert all(0.9 * budget <= search.cost(sample) <= budget for sample in tried[0])
    assert len({tuple(sample.values()) for sample in tried[0]}) == 64
    sums = sorted(total(effects, sample) for sample in tried[0])
    assert [one.loss for one in best] == sums[:16]
    assert search.fill(losses, 128, 0) == best != search.fill(losses, 128, 1)
    assert FrontSearch(model, SPACE, key, candidates).fill(losses, 128, 0) == []
    tried.clear()
    FrontSearch(model, SPACE, key, candidates, [budget, 1.02 * budget, budget, 1.04 * budget]).fill(losses, 64, 0)
    assert [len(samples) for samples in tried] == [22, 21, 21]
    assert len({tuple(one.values()) for samples in tried for one in samples}) == 64  # though the costs overlap
    explored = search.explore(losses, 60, 0)
    without, found = (search.nominate(explored, explored[0].sample, [], some) for some in ([], best))
    filling = {tuple(one.sample[label] for label in candidates) for one in best}
    assert {key for key, origin in found.items() if origin == "random"} == filling - without.keys()


def test_half_of_what_is_chosen_among_fills_the_budget():
    rows = [
        row(f"point-{number:02d}", number, cost) for number, cost in enumerate((0.1, 0.2, 0.5, 0.3, 1, 0.9, 0.4, 0.95))
    ]
    rows[2] = replace(rows[2], on_front=False)

    def names(limit, count):
        return [int(one.name[-2:]) for one in points_within(rows, limit, count)]

    assert names(1, 1) == [0]
    assert names(1, 2) == [0, 4]
    assert names(1, 5) == [0, 1, 2, 4, 5]
    assert names(1, 8) == [0, 1, 2, 3, 4, 5, 7, 6]  # there are three that fill it
    assert names(1, 99) == [*range(8)]
    assert names(0.5, 2) == [0, 2]


def test_what_is_known_is_not_computed_again(tmp_path):
    computed = []

    def losses(samples):
        computed.extend(samples)
        return [float(len(sample["a"])) for sample in samples]

    def complete(kept):
        return known(losses, lambda sample: kept.get("some", sample), lambda *new: kept.add("some", *new, write=True))

    kept = KnownLosses(tmp_path / "losses.csv", ["a", "b"])
    one, two, three = ({"a": text, "b": "x"} for text in ("k", "kk", "kkk"))
    assert complete(kept)([one, two]) == [1, 2]
    again = KnownLosses(tmp_path / "losses.csv", ["a", "b"])
    assert complete(again)([three, two, one]) == [3, 2, 1]
    assert computed == [one, two, three]
    many = [{"a": "k" * length, "b": "y"} for length in range(1, 21)]
    written = []
    known(losses, lambda sample: None, lambda some, _: written.append(len(some)))(many)
    assert written == [8, 8, 4]  # what an interruption loses is a few
    assert again.get("others", one) is None


@pytest.mark.parametrize(
    "text", ["", "loss,a\n1,x\n", "images,loss,a,b\nsome,much,x,y\n", 'images,loss,a,b\nsome,1,"x,y\n']
)
def test_a_damaged_file_of_losses_is_refused(tmp_path, refused, text):
    (tmp_path / "losses.csv").write_text(text)
    if text:
        with refused(tmp_path / "losses.csv", "--force"):
            KnownLosses(tmp_path / "losses.csv", ["a", "b"])
    else:
        assert KnownLosses(tmp_path / "losses.csv", ["a", "b"]).losses == {}


def row(name="point-01", loss=1.0, gflops=0.1, latency=None, front=True, unit="gflops"):
    return FrontRow(name, "sample", loss, gflops, 0.2, latency, unit, front, {"a": "x", "b": "y"})


def test_a_front_is_read_as_it_was_written(tmp_path, refused):
    rows = (row(), row("other-01", 2.0, 0.2, 3.5, front=False), row("point-02", 0.5, 0.3))
    write_front(tmp_path / "front.csv", rows)
    assert read_front(tmp_path / "front.csv") == rows
    assert chosen_point(rows, 0.25) == rows[0]
    assert chosen_point(rows, 0.3) == rows[2]
    with refused("--budget", "0.05", "0.1 or more"):
        chosen_point(rows, 0.05)
    timed = (row(gflops=9, latency=3.0, unit="latency_ms"), row("point-02", 0.5, 0.1, 4.0, unit="latency_ms"))
    assert chosen_point(timed, 3.5) == timed[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1.0", "nan"),
        ("1.0", "much"),
        ("point-01", ""),
        ("point-02", "point-01"),
        ("unit", "u"),
        (",gflops,1", ",gflops,2"),
        (",gflops,1", ",latency_ms,1"),
        (",gflops,1", ",miles,1"),
        (",1,x", ",0,x"),
        ("x,y", "x"),
    ],
)
def test_a_damaged_front_is_refused(tmp_path, refused, before, after):
    file = tmp_path / "front.csv"
    write_front(file, [row(), row("point-02", 0.5, 0.3)])
    file.write_text(file.read_text().replace(before, after))
    with refused(file, "is not a table of a front"):
        read_front(file)


# ------------------------------------------------------------------------------------------------- a real supernet

VALUES = {"data.train": 32, "data.val": 4, "search.epochs": 2, "search.warmup_epochs": 1}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run whose search has ended, by the command."""
    folder = tmp_path_factory.mktemp("searched")
    save_search_space(SPACE, folder / "space.yml")
    options = [part for key, value in VALUES.items() for part in ("--set", f"{key}={value}")]
    arguments = ["search", "--config", "tiny", "--sub-spaces", str(folder / "space.yml"), *options]
    assert cli.main([*arguments, "--out", str(folder / "run")]) == 0
    return RunDirectory(folder / "run")


@pytest.fixture(scope="module")
def supernet(searched):
    return SampledSupernet.restore(searched.supernet, SPACE, load_settings(searched.config), 10)


def test_a_search_goes_on_in_the_sub_spaces_that_it_began_with(searched, tmp_path, capsys, monkeypatch):
    """Without their being named again, and without a screening; others are refused."""
    options = [part for key, value in VALUES.items() for part in ("--set", f"{key}={value}")]
    again = ["search", "--config", "tiny", *options, "--out", str(searched.path), "--resume"]
    monkeypatch.setattr(screening, "screen", lambda *_: pytest.fail("screens"))
    before = searched.sub_spaces.read_text(), searched.architecture.read_text()
    searched.checkpoints("search").mkdir(parents=True)  # as of one that was killed behind its result
    assert cli.main(again) == 0
    assert not searched.checkpoints("search").exists()
    save_search_space({**SPACE, "neck": SPACE["neck"][:1]}, tmp_path / "others.yml")
    capsys.readouterr()
    assert cli.main([*again, "--sub-spaces", str(tmp_path / "others.yml")]) == 2
    assert "sub_spaces.yml: the run has other sub-spaces than the given ones" in capsys.readouterr().err
    assert before == (searched.sub_spaces.read_text(), searched.architecture.read_text())


def test_the_restored_supernet_says_what_inherited_weights_say(searched, supernet, candidates, draw):
    """Against detectors that are built one by one with the weights that they take over."""
    settings = load_settings(searched.config)
    data = open_data(settings.data, settings.seed)
    batches = list(architecture_loader(data, settings.data, settings.skeleton, settings.seed, 4))
    assert len(batches) == 1
    state = read_state(searched.supernet)
    assert supernet.candidates == candidates
    samples = [draw(settings.skeleton, SPACE, seed) for seed in range(6)]
    own = [{label: sample[label] for label in candidates} for sample in samples]
    losses = architecture_losses(supernet.detector, supernet.layers, own, batches, settings.seed)
    expected = [supernet_loss(one, settings.skeleton, 10, state, batches, settings.seed) for one in samples]
    apart = [abs(loss / other - 1) for loss, other in zip(losses, expected, strict=True)]
    # Rounding may let a proposal in or out, now and then.
    assert sum(each < 1e-5 for each in apart) >= 4
    assert max(apart) < 0.01
    assert len(set(losses)) == 6


def test_images_are_left_out(searched):
    settings = load_settings(searched.config)
    data = open_data(settings.data, settings.seed)

    def images(count, skip=0):
        loader = architecture_loader(data, settings.data, settings.skeleton, settings.seed, count, skip)
        return [sample.img_id for batch in loader for sample in batch["data_samples"]]

    whole = images(16)
    assert len(set(whole)) == 16
    assert set(images(8)) | set(images(8, 8)) == set(whole)
    assert set(images(8)) & set(images(8, 8)) == set()
    assert len(images(8, 99)) == 4  # one batch is left whatever is skipped


def test_names_of_budgets_are_apart():
    assert [budget_name(budget) for budget in (0.05, 5.0, 1e-7, 0.1234567)] == [
        "budget-0.05",
        "budget-5",
        "budget-0.0000001",
        "budget-0.1234567",
    ]


def test_too_few_images_are_refused(searched, capsys):
    changed = load_settings(searched.config)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(run_front, "architecture_half_size", lambda *_: 2 * changed.data.batch_size - 1)
        assert cli.main(["front", str(searched.path), "--force"]) == 2
    assert "8 or more" in capsys.readouterr().err


def test_another_supernet_is_refused(searched, tmp_path, refused):
    settings = load_settings(searched.config)
    with refused(searched.supernet, "is not of this search"):
        SampledSupernet.restore(searched.supernet, {**SPACE, "neck": ["conv_k5_d1", "sep_k3_d1"]}, settings, 10)
    with refused(tmp_path / "none.pth"):
        SampledSupernet.restore(tmp_path / "none.pth", SPACE, settings, 10)


def kill(*_):
    raise KilledError


@pytest.mark.parametrize(
    ("decode", "half", "wanted", "expected", "warns"),
    [
        ("probability", 120, 60, (60, 60), False),
        ("samples", 240, 60, (60, 96), False),
        ("samples", 156, 60, (60, 96), False),
        ("samples", 120, 60, (60, 60), True),
        ("samples", 120, 20, (20, 96), False),
        ("samples", 60, 96, (30, 30), True),
    ],
)
def test_finalists_are_compared_on_images_that_nothing_was_chosen_by(
    decode, half, wanted, expected, warns, tiny_settings, monkeypatch, caplog
):
    monkeypatch.setattr(run_front, "architecture_half_size", lambda *_: half)
    search = tiny_settings.search.model_copy(update={"decode": decode, "sample_images": 96})
    first, skipped = run_front._images(tiny_settings.model_copy(update={"search": search}), None, wanted)
    assert (first, skipped) == expected
    assert skipped + first <= half
    assert ("compared on some of them too" in caplog.text) is warns


def test_an_interruption_while_a_front_of_another_unit_is_written(searched, tmp_path, monkeypatch, capsys):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(searched.path, run.path)
    few = ["front", str(run.path), "--samples", "8", "--images", "4"]
    assert cli.main([*few, "--budget", "0.1", "--force"]) == 0
    with monkeypatch.context() as context:
        context.setattr(run_front, "write_front", kill)
        with pytest.raises(KilledError):
            cli.main([*few, "--resume", "--cost", "params_m", "--budget", "0.5"])
    told = "the front was in GFLOPs and is in M parameters now; its architectures for budgets of 0.1 GFLOPs are removed"
    assert told in " ".join(capsys.readouterr().out.split())
    assert cli.main([*few, "--resume"]) == 0
    assert read_front(run.front_table)[0].unit == "gflops"
    assert not read_budgets(run.front)  # none of what were millions


def test_a_front_by_the_command(searched, tmp_path, capsys, monkeypatch):
    run = searched.path

    def front(*more):
        status = cli.main(["front", str(run), "--samples", "24", "--images", "4", *map(str, more)])
        return status, capsys.readouterr()

    model = CostModel(load_settings(searched.config).skeleton, 10)
    budget = 1.2 * FrontSearch(model, SPACE, "gflops", dict(layer_candidates(model.skeleton, SPACE))).limits[0]
    assert front("--budget", budget, "--force")[0] == 0
    rows = read_front(searched.front_table)
    found = load_architecture(searched.architecture)
    assert [row.origin for row in rows if row.sample == found.sample] == ["search"]
    assert [row.gflops for row in rows] == sorted(row.gflops for row in rows)
    points = [row for row in rows if row.on_front]
    for row in rows:
        beaten = [one for one in rows if one.gflops <= row.gflops and one.loss < row.loss]
        assert row.on_front == (not beaten)
        assert (searched.front / f"{row.name}.json").exists() == row.on_front
        assert row.gflops == model.architecture(row.sample)["total"].flops / 1e9
    for row in points:
        assert load_architecture(searched.front / f"{row.name}.json").sample == row.sample
    within = load_architecture(searched.front / f"{budget_name(budget)}.json")
    least = min((row for row in rows if row.gflops <= budget), key=lambda row: row.loss)
    assert within.sample == least.sample

    before = {file.name: file.read_bytes() for file in searched.front.iterdir()}
    status, output = front("--budget", budget)
    assert (status, output.err.count("\n")) == (2, 1)
    assert "--resume" in output.err
    with monkeypatch.context() as context:
        kill_in_sample(context, 10)
        with pytest.raises(KilledError):
            front("--budget", budget, "--force")
    assert not searched.front_table.exists()
    kept = (searched.front / "losses.csv").read_text().count("\n")
    assert kept == 1 + 8  # of the twelve that are drawn by a plan
    assert front("--budget", budget, "--resume")[0] == 0
    assert {file.name: file.read_bytes() for file in searched.front.iterdir()} == before
    others = [budget * (1 + 0.02 * step) for step in range(-3, 8)]
    with monkeypatch.context() as context:
        context.setattr(run_front, "write_front", kill)
        with pytest.raises(KilledError):
            front("--budget", *others, "--resume")
    assert read_front(searched.front_table) == rows
    assert front("--resume")[0] == 0
    assert read_budgets(searched.front) == tuple(sorted({budget, *others}))
    assert front("--budget", *others, "--resume")[0] == 0
    compared = read_front(searched.front_table)
    assert front("--resume")[0] == 0  # with fewer limits fewer are to be compared
    assert read_budgets(searched.front) == tuple(sorted({budget, *others}))  # what was asked for before stays there
    again = {tuple(row.sample.items()): row for row in read_front(searched.front_table)}
    assert {tuple(row.sample.items()): row.loss for row in compared}.items() <= {
        sample: row.loss for sample, row in again.items()
    }.items()
    assert "earlier" in {row.origin for row in again.values()}
    assert front("--budget", budget, "--force")[0] == 0
    assert {file.name: file.read_bytes() for file in searched.front.iterdir()} == before
    # Its supernet's images are not the validation images.
    assert before["losses.csv"].decode().count("4 from 0,") <= 24 + 8
    assert "4 from 4," in before["losses.csv"].decode()

    out = tmp_path / "retrained"
    train = [
        "--set",
        "retrain.epochs=1",
        "--set",
        "retrain.milestones=[1]",
        "--set",
        "data.train=8",
        "--set",
        "data.val=2",
    ]
    chosen = ["retrain", "--config", "tiny", "--front", str(run), "--budget", str(budget)]
    assert cli.main([*chosen, *train, "--out", str(out)]) == 0
    assert load_architecture(out / "architecture.json").sample == least.sample
    best = tmp_path / "best"
    assert cli.main([*chosen, *train, "--top", "2", "--out", str(best)]) == 0
    within = points_within(rows, budget, 2)
    assert "random" in {row.origin for row in rows}
    assert sorted(path.name for path in (best / "rungs").iterdir()) == sorted(
        ["candidates.json", "rungs.csv", *(row.name for row in within)]
    )
    found = load_architecture(best / "architecture.json")
    assert found.sample in [row.sample for row in within]
    counted = model.architecture(found.sample)["total"].flops
    assert [record.flops["total"] for record in found.provenance.cost if record.convention == "macs"] == [counted]
    for wrong, named in (
        ([*chosen[:-1], "1e-9"], ["--budget", "or more"]),
        (chosen[:-2], ["--budget"]),
        ([*chosen, "--architecture", "hit_detector"], ["--architecture"]),
        (["retrain", "--config", "tiny", "--budget", "1"], ["--budget", "--front"]),
        (["retrain", "--config", "tiny", "--architecture", "hit_detector", "--top", "2"], ["--top", "--front"]),
        ([*chosen, "--top", "0"], ["--top"]),
        ([*chosen, "--top", "999"], ["--top", "or fewer"]),
    ):
        assert cli.main([*wrong, "--out", str(tmp_path / "no")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(text in error for text in named)


def test_a_front_in_milliseconds(searched, tmp_path, capsys):
    settings = load_settings(searched.config)
    table = tmp_path / "table.json"
    arguments = ["front", str(searched.path), "--samples", "16", "--images", "4", "--cost", "latency_ms", "--force"]
    assert cli.main(arguments) == 2
    assert "--table" in capsys.readouterr().err
    save_latency_table(made_up_table(settings.skeleton, machine="a phone"), table)
    assert cli.main([*arguments, "--table", str(table)]) == 2
    assert "a phone" in capsys.readouterr().err
    content = made_up_table(settings.skeleton, machine=processor("cpu"))
    save_latency_table(content, table)
    capsys.readouterr()
    assert cli.main([*arguments, "--table", str(table), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    model = CostModel(settings.skeleton, 10, latency=LatencyTable(content, table))
    for row in rows:
        assert row["latency_ms"] == model.architecture(row["sample"])["total"].nanoseconds / 1e6
    assert [row["latency_ms"] for row in rows] == sorted(row["latency_ms"] for row in rows)
    point = next(row for row in rows if row["on_front"])
    architecture = load_architecture(searched.front / f"{point['name']}.json")
    assert architecture.provenance.latency.milliseconds == point["latency_ms"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--samples", "7"], "--samples"),
        (["--images", "0"], "--images"),
        (["--budget", "-1"], "--budget"),
        (["--budget", "nan"], "--budget"),
        (["--budget", "1e-9"], "or more"),
    ],
)
def test_a_front_refuses_in_one_line(searched, tmp_path, capsys, more, named):
    earlier = searched.front / "earlier.json"
    searched.front.mkdir(exist_ok=True)
    earlier.touch()
    assert cli.main(["front", str(searched.path), "--force", *more]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), named in error) == (1, True)
    assert earlier.exists()  # what is refused removes nothing
    earlier.unlink()
    unfinished = RunDirectory(tmp_path / "unfinished")
    unfinished.open(load_settings("tiny"))
    assert cli.main(["front", str(unfinished.path)]) == 2
    assert "architecture.json" in capsys.readouterr().err
    assert torch.is_grad_enabled()
