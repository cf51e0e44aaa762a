"""An architecture by samples: the model of losses, what is tried next, and what the cost has to say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from group import run_group
from killing import KilledError, kill_in_sample

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.knapsack import cost_of_choice
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.cost_term import NO_COST, CostTerm, make_cost_term
from hitdet_nni.nas.sample_evaluation import shared_losses
from hitdet_nni.nas.sampled_decode import (
    AdditiveModel,
    DecodedSamples,
    Evaluated,
    below_fence,
    search_samples,
    totals,
)
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.samples import TriedArchitecture, read_samples, write_samples

CANDIDATES = {
    "backbone/l01": ("a", "b", "c"),
    "backbone/l02": ("a", "b", "c"),
    "head/l01": ("a", "e"),
}
LARGE = {f"{part}/l{layer:02d}": tuple("abcdefgh") for part in ("backbone", "neck", "head") for layer in range(1, 5)}


def drawn(count, seed=0, candidates=CANDIDATES):
    generator = np.random.default_rng(seed)
    return [{label: str(generator.choice(names)) for label, names in candidates.items()} for _ in range(count)]


def planted(candidates, seed):
    """What each operator adds to the loss: something in its component, and something in the layer."""
    generator = np.random.default_rng(seed)
    shared = {label.split("/")[0]: generator.normal(size=len(names)) for label, names in candidates.items()}
    return {
        label: dict(zip(names, (shared[label.split("/")[0]] + generator.normal(size=len(names))).tolist(), strict=True))
        for label, names in candidates.items()
    }


def total(effects, sample):
    return sum(effects[label][name] for label, name in sample.items())


def kernel(one, other):
    """The covariance of two architectures' losses: operators that agree in the layer, and in the component."""
    own = sum(one[label] == other[label] for label in one)
    shared = sum(one[a] == other[b] for a in one for b in other if a.split("/")[0] == b.split("/")[0])
    return own + shared


def test_the_model_is_a_gaussian_process_of_agreeing_operators():
    """Its mean and spread by an independent computation: the dual form, which inverts a matrix of samples."""
    samples, ridge = drawn(9), 0.7
    losses = np.random.default_rng(1).normal(size=9)
    model = AdditiveModel(samples, losses, CANDIDATES, ridge)
    everything = [dict(zip(CANDIDATES, names, strict=True)) for names in itertools.product(*CANDIDATES.values())]
    centre = np.eye(9) - np.full((9, 9), 1 / 9)
    gram = np.array([[kernel(a, b) for b in samples] for a in samples])
    between = np.array([[kernel(a, b) for b in samples] for a in everything])
    y = below_fence(losses) - below_fence(losses).mean()
    inverse = np.linalg.inv(centre @ gram @ centre + ridge * np.eye(9))
    expected = between @ centre @ inverse @ y
    means = [total(model.effects(), one) for one in everything]
    np.testing.assert_allclose(means, expected, atol=1e-9)

    noise = y @ np.linalg.inv(centre @ gram @ centre / ridge + np.eye(9)) @ y / 8
    prior = np.array([[kernel(a, b) for b in everything] for a in everything])
    covariance = noise / ridge * (prior - between @ centre @ inverse @ centre @ between.T)
    generator = np.random.default_rng(2)
    draws = [model.effects(generator) for _ in range(4000)]
    found = np.cov(np.array([[total(one, sample) for sample in everything] for one in draws]).T)
    np.testing.assert_allclose(found, covariance, atol=0.1 * covariance.max())


def test_the_model_knows_how_much_it_does_not_know():
    """What it is wrong by is as large as it says: effects and noise of the sizes that it expects."""
    wrong = []
    for seed in range(30):
        effects, generator = planted(LARGE, seed), np.random.default_rng(seed)
        samples = drawn(60, seed, LARGE)
        losses = [total(effects, sample) + generator.normal() for sample in samples]
        model = AdditiveModel(samples, losses, LARGE)
        one, other = drawn(2, 1000 + seed, LARGE)
        draws = [total(draw, one) - total(draw, other) for draw in (model.effects(generator) for _ in range(200))]
        truth = total(effects, one) - total(effects, other)
        wrong.append((truth - np.mean(draws)) / np.std(draws))
    assert 0.6 < np.std(wrong) < 1.6


def test_losses_are_cut_off_at_tukeys_fence():
    np.testing.assert_allclose(below_fence([1, 2, 3, 4, 5]), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(below_fence([1, 2, 3, 4, 100]), [1, 2, 3, 4, 4 + 1.5 * 2])


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_best_is_found_among_many(seed):
    """12 layers of 8 operators, 7e10 architectures, 160 looked at or fewer; 160 random ones come nowhere near."""
    effects = planted(LARGE, seed)
    tried = search_samples(lambda some: [total(effects, s) for s in some], LARGE, [NO_COST], 160, seed)
    found = min(tried, key=lambda one: one.loss).sample
    least, mean = (sum(pick(list(row.values())) for row in effects.values()) for pick in (min, np.mean))
    gap = (total(effects, found) - least) / (mean - least)
    at_random = min(total(effects, sample) for sample in drawn(160, seed, LARGE))
    assert gap < 0.1 < 0.4 < (at_random - least) / (mean - least)
    assert len({tuple(one.sample.values()) for one in tried}) == len(tried)
    assert 100 < len(tried) <= 160


def test_the_same_seed_tries_the_same():
    effects = planted(LARGE, 0)
    tried = [
        search_samples(lambda some: [total(effects, s) for s in some], LARGE, [NO_COST], 40, seed) for seed in (0, 0, 1)
    ]
    assert tried[0] == tried[1] != tried[2]


def tried_in_a_group():
    effects = planted(LARGE, 0)

    def losses(some):
        return shared_losses(lambda share: [total(effects, sample) for sample in share], some)

    tried = search_samples(losses, LARGE, [NO_COST], 60, 0)
    return [(list(one.sample.values()), one.loss) for one in tried]


@pytest.mark.slow
def test_two_processes_try_as_one(tmp_path):
    first, second = run_group(tried_in_a_group, tmp_path)
    assert first == second == tried_in_a_group()


def test_a_small_space_is_tried_whole():
    effects = planted(CANDIDATES, 0)
    tried = search_samples(lambda some: [total(effects, s) for s in some], CANDIDATES, [NO_COST], 100, 0)
    assert len(tried) <= 18
    best = min(tried, key=lambda one: one.loss)
    assert best.sample == {label: min(row, key=row.get) for label, row in effects.items()}


SPACE = {
    "backbone": ["ir_k3_d1_e3", "conv_k3_d1", "sep_k3_d1"],
    "neck": ["sep_k3_d1", "conv_k3_d1"],
    "head": ["ir_k3_d1_e1"],
}


@pytest.fixture(scope="module")
def model(tiny_settings):
    return CostModel(tiny_settings.skeleton, 10)


@pytest.fixture(scope="module")
def candidates(tiny_settings):
    every = layer_candidates(tiny_settings.skeleton, SPACE)
    return {label: names for label, names in every.items() if len(names) > 1}


def flops(model, sample):
    fixed = dict.fromkeys(model.skeleton.labels("head"), SPACE["head"][0])
    return model.architecture({**fixed, **sample})["total"].flops


def test_the_weight_of_the_cost_is_part_of_what_is_best(model, candidates):
    weight = 20.0
    cost = make_cost_term(model, SPACE, weight, None, 0.05)
    effects = planted(candidates, 0)
    best = cost.decode_losses(effects, candidates)
    for label, names in candidates.items():
        totals = {
            name: total(effects, {**best, label: name}) + weight * flops(model, {**best, label: name}) / 1e9
            for name in names
        }
        assert min(totals, key=totals.get) == best[label]
    for sample in drawn(5, 0, candidates):
        assert cost.price(sample, candidates) == pytest.approx(weight * flops(model, sample) / 1e9)
    cheapest = make_cost_term(model, SPACE, 1e6, None, 0.05).decode_losses(effects, candidates)
    assert flops(model, cheapest) == min(
        flops(model, {**cheapest, label: name}) for label, row in candidates.items() for name in row
    )


def test_what_is_best_keeps_the_budget(model, candidates):
    effects = planted(candidates, 0)
    free = flops(model, NO_COST.decode_losses(effects, candidates))
    limit = 0.9 * free / 1e9
    cost = make_cost_term(model, SPACE, 0.01, BudgetSettings(gflops=limit), 0.05)
    best = cost.decode_losses(effects, candidates)
    counts = {
        label: [model.layer_cost(layer, name).flops for name in candidates[label]]
        for layer in model.layers
        if (label := layer.label) in candidates
    }
    first = {label: names[0] for label, names in candidates.items()}
    fixed = flops(model, first) - sum(row[0] for row in counts.values())
    costs = np.array([sum(row) for row in itertools.product(*(counts[label] for label in candidates))])
    sums = np.array([sum(row) for row in itertools.product(*(effects[label].values() for label in candidates))])
    assert total(effects, best) == pytest.approx(sums[fixed + costs <= limit * 1e9].min())
    assert cost.price(best, candidates) == 0
    assert cost.price(NO_COST.decode_losses(effects, candidates), candidates) == math.inf
    for count in (60, 4):  # however few are tried, one is within the budget
        tried = search_samples(lambda some: [total(effects, s) for s in some], candidates, [cost], count, 0)
        sums = totals(tried, cost, candidates)
        assert min(sums) < math.inf == max(sums)
        assert DecodedSamples(tuple(tried), tuple(sums)).best == best or count == 4


def test_each_of_several_costs_has_its_best(model, candidates):
    """As many architectures as with one of them find the best of every budget, to within little."""
    effects = planted(candidates, 3)
    free = flops(model, NO_COST.decode_losses(effects, candidates)) / 1e9
    budgets = [BudgetSettings(gflops=share * free) for share in (0.85, 0.9, 0.95, 1)]
    costs = [make_cost_term(model, SPACE, 0.01, each, 0.05) for each in budgets]
    tried = search_samples(lambda some: [total(effects, s) for s in some], candidates, costs, 80, 0)
    spread = np.std([total(effects, sample) for sample in drawn(200, 0, candidates)])
    for cost in costs:
        best = total(effects, cost.decode_losses(effects, candidates))
        assert min(totals(tried, cost, candidates)) <= best + 0.1 * spread


def test_of_equals_the_first_is_taken():
    tried = (Evaluated({"l": "a"}, 2.0), Evaluated({"l": "b"}, 1.0), Evaluated({"l": "c"}, 1.5))
    assert DecodedSamples(tried, (2.5, 2.0, 2.0)).best == {"l": "b"}


def test_a_budget_is_kept_to_the_last_operation(model, candidates):
    sample = drawn(1, 0, candidates)[0]
    exact = flops(model, sample)
    assert Budget(model, SPACE, BudgetSettings(gflops=exact / 1e9)).keeps(sample)
    assert not Budget(model, SPACE, BudgetSettings(gflops=(exact - 1) / 1e9)).keeps(sample)
    whole = {**sample, **dict.fromkeys(model.skeleton.labels("head"), SPACE["head"][0])}
    assert cost_of_choice(whole, Budget(model, SPACE, BudgetSettings(gflops=1)).costs.counts) < exact


class Depth(CostTerm):
    """A cost of one's own, which not every layer concerns: how many of the backbone have ``a``."""

    weight = 1.0

    def loss(self, probabilities):
        return 10 * torch.stack([row[0] for label, row in probabilities.items() if label.startswith("backbone")]).sum()


def test_a_cost_of_ones_own_is_weighed():
    effects = {label: {name: float(name != "a") for name in names} for label, names in CANDIDATES.items()}
    assert set(NO_COST.decode_losses(effects, CANDIDATES).values()) == {"a"}
    best = Depth().decode_losses(effects, CANDIDATES)
    assert [best[label] == "a" for label in CANDIDATES] == [False, False, True]
    assert Depth().price(dict.fromkeys(CANDIDATES, "a"), CANDIDATES) == 20


def test_a_search_by_samples_that_is_interrupted_ends_equal(tiny_data, tmp_path, monkeypatch, caplog):
    """Killed among the samples: the training is not repeated, and what is found and tried is the same to the letter."""
    values = {
        "data.train": 16,
        "data.val": 4,
        "search.epochs": 1,
        "search.warmup_epochs": 0,
        "search.decode": "samples",
        "search.samples": 12,
        "search.sample_images": 8,
        "search.flops_weight": 30.0,
    }
    settings = load_settings("tiny", values)
    one, two = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two")
    epochs = []

    def go_on(run):
        return search(run, SPACE, settings, tiny_data, lambda stage, record: epochs.append(record))

    found = go_on(one)
    assert not any("settled" in line or "decoded detector" in line for line in caplog.messages)
    with monkeypatch.context() as context:
        kill_in_sample(context, 10)
        with pytest.raises(KilledError):
            go_on(two)
    assert not two.architecture.exists()
    assert go_on(two).sample == found.sample
    assert len(epochs) == 2
    assert two.samples.read_bytes() == one.samples.read_bytes()
    rows = read_samples(one.samples)
    assert 6 < len(rows) <= 12
    best = min(rows, key=lambda row: row.total)
    assert [row for row in rows if row.found] == [best]
    model = CostModel(settings.skeleton, len(tiny_data.classes))
    for row in rows:
        cost = model.architecture(row.sample)["total"]
        assert (row.gflops, row.params_m) == (cost.flops / 1e9, cost.params / 1e6)
        assert row.total == pytest.approx(row.loss + 30 * row.gflops)
    assert best.sample == found.sample
    assert {found.sample[label] for label in settings.skeleton.labels("head")} == {"ir_k3_d1_e1"}


TABLE = "loss,total,gflops,params_m,found,a,b\n1.5,inf,0.1,0.2,0,x,y\n2,3,0.1,0.2,1,x,x\n"


def test_a_table_of_samples_is_read_as_it_was_written(tmp_path):
    (tmp_path / "one.csv").write_text(TABLE)
    rows = read_samples(tmp_path / "one.csv")
    assert rows[0] == TriedArchitecture(1.5, math.inf, 0.1, 0.2, False, {"a": "x", "b": "y"})
    write_samples(tmp_path / "two.csv", rows)
    assert read_samples(tmp_path / "two.csv") == rows


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1.5", "nan"),
        ("1.5", "inf"),
        ("1.5", "much"),
        (",1,x", ",0,x"),
        ("x,y", "x"),
        ("x,y", "x,"),
        ("found", "f"),
        ("0.1", "inf"),
        (",1,x", ",2,x"),
        ("x,y", "x,y,z"),
        (TABLE, ""),
        ("1.5", '"1.5'),
    ],
)
def test_a_damaged_table_of_samples_is_refused(tmp_path, refused, before, after):
    (tmp_path / "one.csv").write_text(TABLE.replace(before, after))
    with refused("is not a table of tried architectures"):
        read_samples(tmp_path / "one.csv")
