"""What ``export --epoch`` decodes: the run's own architecture after the last epoch, within its budget after all."""

import csv
import json

import numpy as np
import pytest
from tables import made_up_table

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import layer_candidates, load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable, save_latency_table
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {
    "backbone": ["sep_k3_d1", "conv_k5_d1", "ir_k7_d1_e6"],
    "neck": ["sep_k3_d1"],
    "head": ["conv_k3_d1", "sep_k3_d1"],
}
MEASURES = {"gflops": ("flops", 10**9), "params_m": ("params", 10**6)}
EPOCHS = 3


def extremes(skeleton, measure, model=None):
    """Cost of the cheapest and of the dearest architecture of the space."""
    model = model or CostModel(skeleton, 10)
    totals = []
    for pick in (min, max):
        sample = {}
        for layer in model.layers:
            counts = {name: getattr(model.layer_cost(layer, name), measure) for name in SPACE[layer.component]}
            sample[layer.label] = pick(counts, key=counts.get)
        totals.append(getattr(model.architecture(sample)["total"], measure))
    return totals


def between(key, part):
    """A budget that lies at a part of the way from the cheapest architecture to the dearest."""
    measure, scale = MEASURES[key]
    least, most = extremes(load_settings("tiny").skeleton, measure)
    return (least + part * (most - least)) / scale


def cost_of(architecture, key):
    measure, scale = MEASURES[key]
    (record,) = (record for record in architecture.provenance.cost if record.convention == "macs")
    return getattr(record, measure)["total"] / scale


def export(run, epoch, out):
    assert cli.main(["export", str(run.path), "--epoch", str(epoch), "--out", str(out), "--force"]) == 0
    return load_architecture(out)


@pytest.fixture
def run(tmp_path):
    """A run without results whose alphas are written by hand, with a budget or none."""

    def make(budget, alphas):
        found = RunDirectory(tmp_path / "run")
        found.open(load_settings("tiny", {"search.budget": budget}), force=True)
        save_search_space(SPACE, found.sub_spaces)
        found.alphas.parent.mkdir(exist_ok=True)
        with found.alphas.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["epoch", "label", "operator", "alpha", "probability"])
            for epoch, layers in enumerate(alphas):
                for label, row in layers.items():
                    writer.writerows([epoch, label, name, alpha, 0.5] for name, alpha in row.items())
        return found

    return make


def random_alphas(seed, pull):
    """Alphas of every searched layer that pull towards large operators."""
    rng = np.random.default_rng(seed)
    searched = layer_candidates(load_settings("tiny").skeleton, SPACE)
    return {
        label: {name: float(rng.normal() + pull * ("sep" not in name)) for name in names}
        for label, names in searched.items()
        if len(names) > 1
    }


@pytest.mark.parametrize("key", MEASURES)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5])
def test_every_epoch_keeps_the_budget(run, tmp_path, key, part):
    limit = between(key, part)
    alphas = [random_alphas(epoch, 2.0) for epoch in range(EPOCHS)]
    within = run({key: limit}, alphas)
    kept = [export(within, epoch, tmp_path / "out.json") for epoch in range(EPOCHS)]
    assert all(cost_of(architecture, key) <= limit for architecture in kept)
    without = run(None, alphas)
    free = [export(without, epoch, tmp_path / "out.json") for epoch in range(EPOCHS)]
    assert all(cost_of(architecture, key) > limit for architecture in free)
    for architecture, layers in zip(free, alphas, strict=True):
        assert architecture.sample.items() >= {label: max(row, key=row.get) for label, row in layers.items()}.items()
        assert all(architecture.sample[label] == "sep_k3_d1" for label in architecture.skeleton.labels("neck"))


def test_of_equal_alphas_the_first_candidate_is_taken(run, tmp_path):
    """As the search does; the order of the table does not matter."""
    alphas = {label: dict.fromkeys(reversed(list(row)), 0.25) for label, row in random_alphas(0, 0.0).items()}
    found = export(run(None, [alphas]), 0, tmp_path / "out.json")
    assert all(name == SPACE[label.split("/")[0]][0] for label, name in found.sample.items())


def test_a_budget_in_milliseconds_is_kept_by_the_run_s_own_table(tmp_path, capsys):
    """A search by a table of another machine: its copy decides, whatever becomes of the file that was named."""
    space, table, out = tmp_path / "space.yml", tmp_path / "table.json", tmp_path / "out.json"
    save_search_space(SPACE, space)
    content = made_up_table(load_settings("tiny").skeleton, machine="a phone", space=SPACE)
    save_latency_table(content, table)
    model = CostModel(content.skeleton, 10, latency=LatencyTable(content, table))
    least, most = extremes(content.skeleton, "nanoseconds", model)
    limit = (least + 0.02 * (most - least)) / 1e6
    epochs = {"search.epochs": 2, "search.warmup_epochs": 1, "data.train": 16, "data.val": 4}

    def search(budget, *more):
        changed = {"search.budget": budget, **epochs}
        options = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
        arguments = ["search", "--config", "tiny", "--sub-spaces", str(space), *options, "--out", str(run.path), *more]
        return cli.main(arguments), capsys.readouterr().err

    run = RunDirectory(tmp_path / "run")
    for budget, named in (
        (f"{{latency_ms: {limit}, table: {table}}}", ["a phone", "other_machine"]),
        (
            f"{{latency_ms: {least / 2e6}, table: {table}, other_machine: true}}",
            ["search.budget.latency_ms", "or more"],
        ),
        (f"{{latency_ms: {limit}}}", ["search.budget", "latency_ms needs a table"]),
        (f"{{gflops: {limit}, table: {table}}}", ["search.budget", "table has no meaning with gflops"]),
        (f"{{latency_ms: {limit}, gflops: 1, table: {table}}}", ["search.budget", "give one of"]),
    ):
        status, error = search(budget)
        assert (status, error.count("\n")) == (2, 1)
        assert all(text in error for text in named)
    good = f"{{latency_ms: {limit}, table: {table}, other_machine: true}}"
    assert search(good)[0] == 0
    found = load_architecture(run.architecture)
    time = model.architecture(found.sample)["total"].nanoseconds / 1e6
    assert time <= limit
    assert found.provenance.latency.milliseconds == time
    assert found.provenance.latency.machine == "a phone"
    save_latency_table(made_up_table(content.skeleton, seed=1, space=SPACE), table)
    assert export(run, 1, out).sample == found.sample
    assert load_architecture(out).provenance.latency == found.provenance.latency
    run.architecture.unlink()
    status, error = search(good, "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "search.budget.table" in error
    table.unlink()
    status, error = search(good, "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert f"search.budget.table: no such file; allowed: a copy of {run.latency} in its place, or --set " in error
    assert search(good.replace(str(table), str(run.latency)), "--resume")[0] == 0  # the same times
    assert load_architecture(run.architecture).sample == found.sample


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda row: row.pop("conv_k5_d1"), ["epoch 0 has no alpha of conv_k5_d1 in backbone/l01"]),
        (lambda row: row.update(conv_k5_d1=float("nan")), ["got 'nan'", "alpha", "a finite number"]),
        (lambda row: row.update(conv_k3_d1=9.0), ["conv_k3_d1 was not searched in backbone/l01", "conv_k5_d1"]),
        (lambda row: row.update(conv_k5_d1="much"), ["got 'much'", "alpha", "a finite number"]),
    ],
)
def test_alphas_that_do_not_fit_the_space_are_refused(run, tmp_path, capsys, spoil, named):
    alphas = random_alphas(0, 0.0)
    spoil(alphas["backbone/l01"])
    found = run(None, [alphas])
    assert cli.main(["export", str(found.path), "--epoch", "0", "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(text in error for text in (*named, "alphas.csv"))
    assert not (tmp_path / "out.json").exists()


def test_an_epoch_that_is_not_there_is_refused_with_those_that_are(run, tmp_path, capsys):
    found = run(None, [random_alphas(epoch, 0.0) for epoch in range(EPOCHS)])
    assert cli.main(["export", str(found.path), "--epoch", "5", "--out", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err.endswith(f"--epoch: no epoch 5; allowed: 0 to {EPOCHS - 1}\n")


def test_the_last_epoch_is_the_run_s_architecture(tmp_path, capsys):
    """Of a search with a budget that the strongest operators are over."""
    space, out = tmp_path / "space.yml", tmp_path / "out.json"
    save_search_space(SPACE, space)
    limit = between("gflops", 0.02)
    changed = {"search.budget": f"{{gflops: {limit}}}", "search.epochs": EPOCHS, "data.train": 16, "data.val": 4}
    options = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    run = RunDirectory(tmp_path / "run")
    assert cli.main(["search", "--config", "tiny", "--sub-spaces", str(space), *options, "--out", str(run.path)]) == 0
    assert load_search_space(run.sub_spaces) == SPACE
    exported = [export(run, epoch, out) for epoch in range(EPOCHS)]
    assert all(cost_of(architecture, "gflops") <= limit for architecture in exported)
    found = load_architecture(run.architecture)
    assert exported[-1].sample == found.sample
    assert exported[-1].provenance.cost == found.provenance.cost
    strongest = {}
    with run.alphas.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if int(row["epoch"]) == EPOCHS - 1:
                strongest.setdefault(row["label"], {})[row["operator"]] = float(row["alpha"])
    argmax = {label: max(row, key=row.get) for label, row in strongest.items()}
    assert not found.sample.items() >= argmax.items()
    capsys.readouterr()
    assert json.loads(out.read_text())["name"] == f"run-epoch{EPOCHS - 1}"
