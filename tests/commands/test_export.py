"""What ``export --epoch`` decodes: the run's own architecture after the last epoch, within its budget after all."""

import csv
import json

import numpy as np
import pytest

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import layer_candidates, load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {
    "backbone": ["sep_k3_d1", "conv_k5_d1", "ir_k7_d1_e6"],
    "neck": ["sep_k3_d1"],
    "head": ["conv_k3_d1", "sep_k3_d1"],
}
MEASURES = {"gflops": ("flops", 10**9), "params_m": ("params", 10**6)}
EPOCHS = 3


def extremes(skeleton, measure):
    """Cost of the cheapest and of the dearest architecture of the space."""
    model = CostModel(skeleton, 10)
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
