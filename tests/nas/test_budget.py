"""The best architecture within a budget against exhaustive and dual methods, and the weight that leads to a budget."""

from __future__ import annotations

import io
import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from tables import made_up_table

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.cost.knapsack import cost_of_choice, decode_within, least_cost
from hitdet_nni.cost.latency_table import LatencyTable, save_latency_table
from hitdet_nni.engine.machine import processor
from hitdet_nni.nas.budget import Budget, BudgetMultiplier
from hitdet_nni.nas.checks import budget_cost_model
from hitdet_nni.nas.cost_term import BudgetedCost, WeightedCost
from hitdet_nni.nas.decode import decode

UNITS = {"gflops": ("flops", 10**9), "params_m": ("params", 10**6), "latency_ms": ("nanoseconds", 10**6)}
SMALL_SPACE = {
    "backbone": ["ir_k3_d1_e3", "ir_k5_d1_e6", "ir_k7_d1_e6"],
    "neck": ["sep_k3_d1", "conv_k5_d1"],
    "head": ["conv_k3_d1", "ir_k3_d1_e3", "conv_k5_d1"],
}
FIXED_NECK = {**SMALL_SPACE, "neck": ["sep_k3_d1"]}


def budget(model, space, key, limit):
    table = {"table": "table.json"} if key == "latency_ms" else {}
    return Budget(model, space, BudgetSettings(**{key: limit}, **table))


def decoded(within, scores):
    """The most probable architecture within a budget, every layer of its space decided."""
    return decode(scores, {label: tuple(row) for label, row in within.costs.counts.items()}, within)


def overhead(key):
    """What the made-up table has beyond the layers, in nanoseconds."""
    return 2_500_000 if key == "latency_ms" else 0


def count(model, key, sample):
    return getattr(model.architecture(sample)["total"], UNITS[key][0])


def extremes(model, space, key):
    """Least and largest cost of a space as whole numbers, layer by layer."""
    totals = []
    for pick in (min, max):
        measured = lambda layer, name: getattr(model.layer_cost(layer, name), UNITS[key][0])  # noqa: E731
        sample = {
            layer.label: pick(space[layer.component], key=lambda name, layer=layer: measured(layer, name))
            for layer in model.layers
        }
        totals.append(count(model, key, sample))
    return totals


def random_scores(model, space, seed, pull=0.0):
    """Log-probabilities of random logits, with a pull towards costly operators."""
    rng = np.random.default_rng(seed)
    scores = {}
    for layer in model.layers:
        names = space[layer.component]
        flops = np.array([model.layer_cost(layer, name).flops for name in names], dtype=float)
        logits = rng.normal(size=len(names)) + pull * np.log(flops)
        scores[layer.label] = dict(zip(names, (logits - np.logaddexp.reduce(logits)).tolist(), strict=True))
    return scores


def total(scores, sample):
    return math.fsum(scores[label][name] for label, name in sample.items())


def exhaustive(scores, costs):
    """Total score and total cost of every choice of one operator a layer."""
    score, cost = np.zeros(1), np.zeros(1, dtype=np.int64)
    for label, row in costs.items():
        score = np.add.outer(score, [scores[label][name] for name in row]).ravel()
        cost = np.add.outer(cost, list(row.values())).ravel()
    return score, cost


def pareto(scores, costs, limit):
    """The largest score within a limit by dynamic programming, states being cut by the Lagrangian bound."""
    gain = np.array([[scores[label][name] for name in row] for label, row in costs.items()])  # [layers, operators]
    cost = np.array([list(row.values()) for row in costs.values()], dtype=np.int64)
    prices = np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 800) / limit])
    reduced = gain - prices[:, None, None] * cost
    price = prices[np.argmin(prices * limit + reduced.max(2).sum(1))]
    picks = reduced.argmax(2)
    layers = np.arange(len(gain))
    fitting = cost[layers, picks].sum(1) <= limit
    feasible = gain[layers, picks].sum(1)[fitting].max()
    ahead = (gain - price * cost).max(1)
    gains, spent = np.zeros(1), np.zeros(1, dtype=np.int64)
    for layer in layers:
        gains, spent = np.add.outer(gains, gain[layer]).ravel(), np.add.outer(spent, cost[layer]).ravel()
        bound = gains + ahead[layer + 1 :].sum() + price * (limit - spent)
        alive = (spent + cost[layer + 1 :].min(1).sum() <= limit) & (bound >= feasible - 1e-9)
        order = np.lexsort((-gains[alive], spent[alive]))
        gains, spent = gains[alive][order], spent[alive][order]
        front = np.concatenate([[True], gains[1:] > np.maximum.accumulate(gains)[:-1]])
        gains, spent = gains[front], spent[front]
    return gains.max()


@pytest.fixture(scope="module")
def tiny_model(tiny):
    return CostModel(tiny, 10, latency=LatencyTable(made_up_table(tiny), "table.json"))


@pytest.mark.parametrize("key", UNITS)
@pytest.mark.parametrize("seed", range(3))
def test_decoded_is_the_best_of_all_within_the_budget(tiny_model, key, seed):
    scores = random_scores(tiny_model, SMALL_SPACE, seed, pull=0.5 * seed)
    measure, scale = UNITS[key]
    table = {
        layer.label: {
            name: getattr(tiny_model.layer_cost(layer, name), measure) for name in SMALL_SPACE[layer.component]
        }
        for layer in tiny_model.layers
    }
    every_score, every_cost = exhaustive(scores, table)
    fixed = sum(getattr(layer.cost, measure) for layer in tiny_model.fixed) + overhead(key)
    least, largest = extremes(tiny_model, SMALL_SPACE, key)
    limits = [least + 1, *(least + int((largest - least) * part) for part in (0.05, 0.2, 0.4, 0.7)), largest - 1]
    found = set()
    for limit in limits:
        sample = decoded(budget(tiny_model, SMALL_SPACE, key, limit / scale), scores)
        assert count(tiny_model, key, sample) <= limit
        assert total(scores, sample) == pytest.approx(every_score[every_cost + fixed <= limit].max(), abs=1e-9)
        found.add(tuple(sample.items()))
    assert len(found) > 2


@pytest.mark.parametrize("key", UNITS)
def test_unreachable_budget_names_a_reachable_one(tiny_model, key, refused):
    least, _ = extremes(tiny_model, FIXED_NECK, key)
    scale = UNITS[key][1]
    low = budget(tiny_model, FIXED_NECK, key, (least - 1) / scale)
    with refused("run.yml", f"search.budget.{key}", (least - 1) / scale, "or more") as _:
        low.check_reachable("run.yml")
    with pytest.raises(ValueError, match="or more") as caught:
        decoded(low, random_scores(tiny_model, FIXED_NECK, 0))
    named = float(caught.value.allowed.split()[0])
    assert named == pytest.approx(least / scale, rel=1e-5)
    accepted = budget(tiny_model, FIXED_NECK, key, named)
    accepted.check_reachable()
    assert count(tiny_model, key, decoded(accepted, random_scores(tiny_model, FIXED_NECK, 0))) <= round(named * scale)
    exact = budget(tiny_model, FIXED_NECK, key, least / scale)
    exact.check_reachable()
    assert count(tiny_model, key, decoded(exact, random_scores(tiny_model, FIXED_NECK, 0))) == least


@pytest.mark.parametrize("key", UNITS)
@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_full_size_agrees_with_dynamic_programming(published, key, kind):
    skeleton = Skeleton(detector=kind)
    model = CostModel(skeleton, 80, latency=LatencyTable(made_up_table(skeleton, 80), "table.json"))
    measure, scale = UNITS[key]
    least, largest = extremes(model, published, key)
    fixed = sum(getattr(layer.cost, measure) for layer in model.fixed) + overhead(key)
    table = {
        layer.label: {name: getattr(model.layer_cost(layer, name), measure) for name in published[layer.component]}
        for layer in model.layers
    }
    for seed, part in enumerate((0.001, 0.02, 0.1, 0.4)):
        scores = random_scores(model, published, seed, pull=0.7)
        limit = least + int((largest - least) * part)
        sample = decoded(budget(model, published, key, limit / scale), scores)
        assert count(model, key, sample) <= limit
        assert total(scores, sample) == pytest.approx(pareto(scores, table, limit - fixed), abs=1e-9)


def test_budget_is_kept_to_the_last_unit():
    """Costs of ten digits that differ in the last, where floating point would let the limit be exceeded by a few."""
    rng = np.random.default_rng(0)
    low, high = 10**10 + 7, 3 * 10**10 + 11
    costs = {f"l{i}": {"low": low, "high": high, "higher": high + 1 + i} for i in range(12)}
    scores = {label: {"low": -1.0, "high": -0.5, "higher": -0.49 + 0.02 * rng.random()} for label in costs}
    every_score, every_cost = exhaustive(scores, costs)
    for limit in (6 * (low + high) - 1, 6 * (low + high), 6 * (low + high) + 5):
        sample = decode_within(scores, costs, limit)
        assert cost_of_choice(sample, costs) <= limit
        assert total(scores, sample) == pytest.approx(every_score[every_cost <= limit].max(), abs=1e-9)


def test_costs_of_a_million_millions_are_exact():
    rng = np.random.default_rng(1)
    costs = {f"l{i}": {f"o{j}": int(rng.integers(10**10, 10**12)) for j in range(4)} for i in range(8)}
    scores = {
        label: {name: math.log(cost) + rng.normal() for name, cost in row.items()} for label, row in costs.items()
    }
    every_score, every_cost = exhaustive(scores, costs)
    reached = every_cost[np.argsort(every_cost)[[0, 10, 1000, 30000]]]
    for limit in itertools.chain.from_iterable((int(cost), int(cost) + 1) for cost in reached):
        sample = decode_within(scores, costs, limit)
        assert cost_of_choice(sample, costs) <= limit
        assert total(scores, sample) == pytest.approx(every_score[every_cost <= limit].max(), abs=1e-9)


def integer_program(scores, costs, limit):
    """The largest total by SciPy's solver of integer programs, which is now and then too small."""
    label = np.repeat(np.arange(len(costs)), [len(row) for row in costs.values()])
    gain = np.array([scores[name][option] for name, row in costs.items() for option in row])
    cost = np.array([value for row in costs.values() for value in row.values()], dtype=float)
    one_each = LinearConstraint((label == np.arange(len(costs))[:, None]).astype(float), 1, 1)
    within = LinearConstraint(cost[None] / limit, -np.inf, 1)
    solved = milp(-gain, integrality=np.ones(len(gain)), bounds=Bounds(0, 1), constraints=[one_each, within])
    return gain[solved.x > 0.5].sum()


@pytest.mark.parametrize("follows", [0.0, 1.0])
def test_never_behind_an_integer_program(follows):
    """Scores that have nothing to do with the costs, and such that follow them, where much has to be compared."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        costs = {f"l{i}": {f"o{j}": int(rng.integers(1, 10**6)) for j in range(rng.integers(1, 7))} for i in range(10)}
        scores = {
            label: {
                name: follows * cost / 1e6 + (0.01 if follows else 1.0) * rng.normal() for name, cost in row.items()
            }
            for label, row in costs.items()
        }
        least, most = least_cost(costs), sum(max(row.values()) for row in costs.values())
        limit = int(least + rng.uniform(0.02, 0.6) * (most - least))
        sample = decode_within(scores, costs, limit)
        assert cost_of_choice(sample, costs) <= limit
        assert total(scores, sample) >= integer_program(scores, costs, limit) - 1e-6


def test_scores_that_are_the_costs_end_near_the_best_and_say_how_near(published, caplog):
    """The sums of 32 layers' costs are too many to compare: whatever is lost is bounded, and told."""
    model = CostModel(Skeleton(), 80)
    costs = {
        layer.label: {name: model.layer_cost(layer, name).flops for name in published[layer.component]}
        for layer in model.layers
    }
    scores = {label: {name: cost / 1e9 for name, cost in row.items()} for label, row in costs.items()}
    least, most = least_cost(costs), sum(max(row.values()) for row in costs.values())
    limit = least + (most - least) // 3
    sample = decode_within(scores, costs, limit)
    (line,) = caplog.messages
    lost = float(re.search(r"up to (\S+) ", line)[1])
    assert limit / 1e9 - 1.05 * lost <= cost_of_choice(sample, costs) / 1e9 <= limit / 1e9
    assert lost < 1e-4 * limit / 1e9


def test_argmax_where_it_fits_and_the_first_of_equals():
    costs = {"a": {"x": 5, "y": 1}, "b": {"x": 5, "y": 1}}
    scores = {"b": {"x": -1.0, "y": -1.0}, "a": {"x": -0.5, "y": -2.0}}
    assert decode_within(scores, costs, 10) == {"a": "x", "b": "x"}
    assert decode_within(scores, costs, 9) == {"a": "x", "b": "y"}
    assert decode_within(scores, costs, least_cost(costs)) == {"a": "y", "b": "y"}


def test_equal_scores_give_one_result_whatever_the_order():
    costs = {f"l{i}": {"low": 10 + i, "middle": 30 + i, "high": 50} for i in range(20)}
    scores = {label: dict.fromkeys(row, -math.log(3)) for label, row in costs.items()}
    first = decode_within(scores, costs, 700)
    assert decode_within(dict(reversed(scores.items())), costs, 700) == first
    assert decode_within(scores, costs, 700) == first


def test_fixed_layers_and_components_are_part_of_the_cost(tiny_model):
    scores = random_scores(tiny_model, FIXED_NECK, 0, pull=1.0)
    searched = {label: row for label, row in scores.items() if not label.startswith("neck")}
    least, largest = extremes(tiny_model, FIXED_NECK, "gflops")
    within = budget(tiny_model, FIXED_NECK, "gflops", (least + largest) // 2 / 10**9)
    sample = decoded(within, searched)
    assert sample == decoded(within, scores)
    assert set(sample) == {layer.label for layer in tiny_model.layers}
    counts = within.costs.counts
    assert within.costs.fixed + cost_of_choice(sample, counts) == count(tiny_model, "gflops", sample)
    with pytest.raises(KeyError, match="backbone/l01"):
        decoded(within, {label: row for label, row in scores.items() if label != "backbone/l01"})
    with pytest.raises(KeyError, match="tail"):
        decoded(within, {**scores, "tail/l01": {"sep_k3_d1": 0.0}})
    with pytest.raises(ValueError, match="backbone/l01 is nan"):
        decoded(within, {**scores, "backbone/l01": dict.fromkeys(FIXED_NECK["backbone"], math.nan)})


def test_a_removed_candidate_is_not_chosen(tiny_model, refused):
    scores = random_scores(tiny_model, FIXED_NECK, 0)
    least, _ = extremes(tiny_model, FIXED_NECK, "gflops")
    tight = budget(tiny_model, FIXED_NECK, "gflops", least / 10**9)
    cheap = decoded(tight, scores)["backbone/l02"]
    scores["backbone/l02"] = {name: score for name, score in scores["backbone/l02"].items() if name != cheap}
    with refused("search.budget.gflops", "or more"):
        decoded(tight, scores)
    wide = budget(tiny_model, FIXED_NECK, "gflops", 1.05 * least / 10**9)
    assert decoded(wide, scores)["backbone/l02"] != cheap


def test_a_budget_means_the_number_as_it_was_typed(tiny_model, draw):
    for seed in range(40):
        sample = draw(tiny_model.skeleton, SMALL_SPACE, seed)
        scores = {label: {name: 0.0} for label, name in sample.items()}
        for key, (_, scale) in UNITS.items():
            exact = count(tiny_model, key, sample)
            assert decoded(budget(tiny_model, SMALL_SPACE, key, exact / scale), scores) == sample
            with pytest.raises(ValueError, match="or more"):
                decoded(budget(tiny_model, SMALL_SPACE, key, (exact - 1) / scale), scores)


def test_expected_cost(tiny_model, draw):
    flops, params = (budget(tiny_model, FIXED_NECK, key, 1.0) for key in ("gflops", "params_m"))
    assert (flops.costs.unit.name, params.costs.unit.name, flops.limit) == ("GFLOPs", "M parameters", 1.0)
    searched = [layer for layer in tiny_model.layers if layer.component != "neck"]
    alphas = {layer.label: torch.randn(len(FIXED_NECK[layer.component]), requires_grad=True) for layer in searched}
    probabilities = {label: alpha.softmax(0) for label, alpha in alphas.items()}
    reference = CostTable(tiny_model, FIXED_NECK).expected(probabilities)
    assert flops.costs.expected(probabilities).item() == pytest.approx(reference.item(), rel=1e-12)
    expected = params.costs.expected(probabilities)
    expected.backward()
    by_hand = sum(layer.cost.params for layer in tiny_model.fixed) / 1e6
    for layer in tiny_model.layers:
        costs = [tiny_model.layer_cost(layer, name).params / 1e6 for name in FIXED_NECK[layer.component]]
        if layer.label not in probabilities:
            by_hand += costs[0]
            continue
        weights = probabilities[layer.label].tolist()
        mean = sum(p * c for p, c in zip(weights, costs, strict=True))
        by_hand += mean
        gradient = [p * (c - mean) for p, c in zip(weights, costs, strict=True)]  # of a softmax
        assert alphas[layer.label].grad.tolist() == pytest.approx(gradient, abs=1e-8)
        assert alphas[layer.label].grad.abs().max() > 0
    assert expected.item() == pytest.approx(by_hand, rel=1e-6)
    sample = draw(tiny_model.skeleton, FIXED_NECK, 0)
    decided = {
        layer.label: torch.tensor([float(name == sample[layer.label]) for name in FIXED_NECK[layer.component]])
        for layer in tiny_model.layers
    }
    for each in (flops, params):
        exact = count(tiny_model, each.key, sample) / UNITS[each.key][1]
        assert float(each.costs.expected(decided)) == pytest.approx(exact, rel=1e-12)
    with pytest.raises(KeyError, match="backbone/l01"):
        flops.costs.expected({})


def test_only_a_budget_in_milliseconds_has_times_and_only_of_this_machine(tmp_path, tiny, refused):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    save_latency_table(made_up_table(tiny, machine=processor("cpu")), ours)
    save_latency_table(made_up_table(tiny, machine="a phone"), theirs)
    assert budget_cost_model(tiny, 10, None).latency is None
    assert budget_cost_model(tiny, 10, BudgetSettings(gflops=1)).latency is None
    assert budget_cost_model(tiny, 10, BudgetSettings(latency_ms=9, table=ours)).overhead.nanoseconds == 2_500_000
    with refused(theirs, "a phone", "other_machine"):
        budget_cost_model(tiny, 10, BudgetSettings(latency_ms=9, table=theirs))
    allowed = BudgetSettings(latency_ms=9, table=theirs, other_machine=True)
    assert budget_cost_model(tiny, 10, allowed).overhead.nanoseconds == 2_500_000
    with refused(ours, "num_classes"):
        budget_cost_model(tiny, 11, BudgetSettings(latency_ms=9, table=ours))


def test_multiplier_rests_only_at_the_limit():
    multiplier = BudgetMultiplier(limit=250.0, start=0.01, alpha_lr=0.05)
    assert multiplier.weight == pytest.approx(0.01)
    for _ in range(100):
        multiplier.update(250.0)
    assert multiplier.weight == pytest.approx(0.01)
    weights = []
    for expected in (251.0, 251.0, 249.0, 249.0, 240.0):
        multiplier.update(expected)
        weights.append(multiplier.weight)
    assert weights[1] > weights[0] > 0.01 > weights[2] > weights[3] > weights[4] > 0


def test_multiplier_in_closed_form():
    excess, lr, steps = 0.01, 0.002, 50
    multiplier = BudgetMultiplier(limit=3.0, start=0.5, alpha_lr=lr)
    for _ in range(steps):
        multiplier.update(3.0 * math.exp(excess))
    assert math.log(multiplier.weight / 0.5) == pytest.approx(20 * lr * steps * excess + 40 * excess)
    half = BudgetMultiplier(limit=3.0, start=0.5, alpha_lr=lr / 2)
    for _ in range(2 * steps):
        half.update(3.0 * math.exp(excess))
    assert half.weight == pytest.approx(multiplier.weight)
    before = multiplier.weight
    for _ in range(round(1 / lr)):
        multiplier.update(3.0 * math.exp(-0.2))
    assert math.log(multiplier.weight / before) == pytest.approx(-1 - 40 * (0.2 + excess))


@pytest.mark.parametrize(("start", "limit", "first"), [(0.0, 50.0, 0.002), (0.001, 50.0, 0.002), (0.01, 50.0, 0.01)])
def test_multiplier_starts_where_it_is_told_but_not_near_zero(start, limit, first):
    assert BudgetMultiplier(limit, start, 0.1).weight == pytest.approx(first)


def test_multiplier_is_bounded_and_comes_back():
    multiplier = BudgetMultiplier(limit=1.0, start=1.0, alpha_lr=0.05)
    for _ in range(1000):
        multiplier.update(100.0)
    assert multiplier.weight == pytest.approx(1e4 * math.exp(2))
    multiplier.update(1.0)
    assert multiplier.weight == pytest.approx(1e4)
    for _ in range(1000):
        multiplier.update(0.5)
    assert multiplier.weight == pytest.approx(1e-4 * 1e-4)
    for expected in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="diverged"):
            multiplier.update(expected)


def test_multiplier_resumes_exactly():
    course = [1.3, 1.2, 1.05, 0.97, 0.99, 1.02]
    whole = BudgetMultiplier(1.0, 0.01, 0.05)
    expected = []
    for cost in course:
        whole.update(cost)
        expected.append(whole.weight)
    first = BudgetMultiplier(1.0, 0.01, 0.05)
    for cost in course[:3]:
        first.update(cost)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = BudgetMultiplier(1.0, 0.01, 0.05)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.weight == expected[2]
    resumed = []
    for cost in course[3:]:
        second.update(cost)
        resumed.append(second.weight)
    assert resumed == expected[3:]


def test_terms_are_the_weighted_expected_cost(tiny_model):
    """A fixed weight rests; a budget's follows the multiplier, which a step adapts and a checkpoint holds."""
    probabilities = {
        layer.label: torch.full((len(FIXED_NECK[layer.component]),), 1 / len(FIXED_NECK[layer.component]))
        for layer in tiny_model.layers
    }
    costs = CostTable(tiny_model, FIXED_NECK)
    expected = costs.expected(probabilities).to(torch.float32)
    fixed = WeightedCost(costs, 0.3)
    fixed.step(probabilities)
    assert (fixed.weight, fixed.state_dict()) == (0.3, {})
    assert torch.equal(fixed.loss(probabilities), 0.3 * expected)

    within = budget(tiny_model, FIXED_NECK, "gflops", 0.9 * expected.item())
    term, multiplier = BudgetedCost(within, 0.3, 0.05), BudgetMultiplier(within.limit, 0.3, 0.05)
    assert term.weight == multiplier.weight
    term.step(probabilities)
    multiplier.update(costs.expected(probabilities).item())
    assert term.weight == multiplier.weight > 0.3
    assert torch.equal(term.loss(probabilities), multiplier.weight * expected)
    resumed = BudgetedCost(within, 0.3, 0.05)
    resumed.load_state_dict(term.state_dict())
    assert resumed.weight == term.weight

    scores = random_scores(tiny_model, FIXED_NECK, 0, pull=1.0)
    candidates = layer_candidates(tiny_model.skeleton, FIXED_NECK)
    assert term.decode(scores, candidates) == decode(scores, candidates, within)
    assert fixed.decode(scores, candidates) == decode(scores, candidates) != decode(scores, candidates, within)


def test_decoding_is_the_first_of_the_largest_of_every_layer_without_a_budget():
    candidates = {"backbone/l01": ("x", "y", "z"), "neck/l01": ("x",), "head/l01": ("x", "y")}
    scores = {"head/l01": {"y": -1.0, "x": -1.0}, "backbone/l01": {"z": -0.5, "y": -0.5}}
    assert list(decode(scores, candidates).items()) == [("backbone/l01", "y"), ("neck/l01", "x"), ("head/l01", "x")]
    for wrong, named in (
        ({"head/l01": {"x": 0.0}}, "backbone/l01"),
        ({**scores, "tail/l01": {"x": 0.0}}, "tail/l01"),
        ({**scores, "head/l01": {"w": 0.0}}, "head/l01"),
    ):
        with pytest.raises(KeyError, match=named):
            decode(wrong, candidates)


def test_layers_that_are_not_decided_count_within_a_budget(tiny_model):
    scores = random_scores(tiny_model, FIXED_NECK, 0, pull=1.0)
    least, largest = extremes(tiny_model, FIXED_NECK, "gflops")
    within = budget(tiny_model, FIXED_NECK, "gflops", (least + largest) // 2 / 10**9)
    whole = decoded(within, scores)
    searched = {label: row for label, row in scores.items() if not label.startswith("neck")}
    chosen = decode(searched, {label: tuple(row) for label, row in searched.items()}, within)
    assert chosen == {label: name for label, name in whole.items() if not label.startswith("neck")}


def search_alphas(model, space, within, weigh, steps=160, lr=0.05):
    """Alphas under a noisy loss that favours costly operators plus the weighed cost; expected cost at each step."""
    generator = torch.Generator().manual_seed(0)
    alphas, gains = {}, {}
    for layer in model.layers:
        row = [model.layer_cost(layer, name) for name in space[layer.component]]
        # Parameters go with FLOPs; times that are made up do not.
        measure = "nanoseconds" if within.key == "latency_ms" else "flops"
        costs = torch.tensor([getattr(cost, measure) for cost in row]).double().log()
        gains[layer.label] = (costs - costs.mean() + 0.3 * torch.randn(len(costs), generator=generator)) / len(
            model.layers
        )
        alphas[layer.label] = torch.zeros(len(costs), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam(alphas.values(), lr, betas=(0.5, 0.999))
    course = []
    for _ in range(steps):
        probabilities = {label: alpha.softmax(0) for label, alpha in alphas.items()}
        expected = within.costs.expected(probabilities)
        loss = weigh(expected.item()) * expected
        for label, alpha in alphas.items():
            noise = 0.3 * torch.randn(len(alpha), generator=generator) / len(alphas)
            loss = loss - probabilities[label] @ gains[label] + alpha @ noise.double()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(expected.item())
    return course, {
        label: dict(zip(space[label.split("/")[0]], alpha.detach().log_softmax(0).tolist(), strict=True))
        for label, alpha in alphas.items()
    }


@pytest.mark.parametrize("key", UNITS)
def test_expected_cost_approaches_the_budget_from_both_sides(tiny_model, published, key):
    papers, _ = search_alphas(tiny_model, published, budget(tiny_model, published, key, 1.0), lambda expected: 0.01)
    # Most of a made-up time is that of fixed layers, so that the times of architectures lie closer together.
    for part in (0.85, 1.05 if key == "latency_ms" else 1.25):
        within = budget(tiny_model, published, key, part * papers[0])
        multiplier = BudgetMultiplier(within.limit, start=0.01, alpha_lr=0.05)

        def adapted(expected, multiplier=multiplier):
            multiplier.update(expected)
            return multiplier.weight

        course, scores = search_alphas(tiny_model, published, within, adapted)
        assert course[0] == pytest.approx(papers[0])
        assert all(abs(cost / within.limit - 1) < 0.04 for cost in course[-20:])
        assert papers[-1] > 1.1 * within.limit
        assert count(tiny_model, key, decoded(within, scores)) / UNITS[key][1] <= within.limit
