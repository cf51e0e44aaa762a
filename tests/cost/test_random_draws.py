"""Random architectures of a range of costs: all where there are few, and otherwise each as likely as any other."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost import random_draws
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.random_draws import draw_within
from hitdet_nni.cost.space_costs import SpaceCosts
from hitdet_nni.nas.checks import whole_space

SPACE = {
    "backbone": ["ir_k3_d1_e1", "ir_k5_d1_e6"],
    "neck": ["sep_k3_d1"],
    "head": ["conv_k3_d1", "sep_k7_d2", "ir_k3_d1_e3"],
}


@pytest.fixture(scope="module")
def costs(tiny_settings):
    return SpaceCosts(CostModel(tiny_settings.skeleton, 10), SPACE)


def all_within(costs, least, most):
    rows = [list(row) for row in costs.counts.values()]
    samples = [dict(zip(costs.counts, names, strict=True)) for names in itertools.product(*rows)]
    return {tuple(sample.values()) for sample in samples if least <= costs.of(sample) <= most}


def middle(costs, share):
    """Limits that enclose a share of the range of costs, in its middle."""
    span = costs.largest - costs.least
    return costs.least + (0.5 - share / 2) * span, costs.least + (0.5 + share / 2) * span


@pytest.mark.parametrize("few", [random_draws.FEW, 0])
@pytest.mark.parametrize("share", [0.2, 1.0, 2.0])
def test_all_are_found(costs, monkeypatch, few, share):
    """Listed or drawn; the limits may lie beyond the cheapest and the dearest."""
    monkeypatch.setattr(random_draws, "FEW", few)
    limits = middle(costs, share)
    within = all_within(costs, *limits)
    assert len(within) > 10
    assert {tuple(one.values()) for one in draw_within(costs, *limits, seed=0, draws=3000)} == within


def test_none_are_found_where_there_are_none(costs):
    for limits in ((0, costs.least - 1), (costs.largest + 1, math.inf), (costs.least + 2, costs.least + 1)):
        assert list(draw_within(costs, *limits, seed=0)) == []
    assert len(list(draw_within(costs, costs.least, costs.least, seed=0))) == 1
    assert len(list(draw_within(costs, costs.largest, math.inf, seed=0))) == 1


@pytest.mark.parametrize("few", [random_draws.FEW, 0])
def test_each_is_drawn_as_often(costs, monkeypatch, few):
    monkeypatch.setattr(random_draws, "FEW", few)
    limits = middle(costs, 0.3)
    within = all_within(costs, *limits)
    firsts = Counter(tuple(next(draw_within(costs, *limits, seed=seed)).values()) for seed in range(20 * len(within)))
    assert set(firsts) <= within
    chi_squared = sum((firsts[key] - 20) ** 2 / 20 for key in within)
    freedom = len(within) - 1
    assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("config", ["small", "coco2014"])
def test_a_budget_that_hardly_any_architecture_keeps_is_filled(config):
    """Of 200,000 architectures drawn from all that the space has hardly one would cost so little."""
    settings = load_settings(config, {"data.builtin": "digits"} if config == "small" else {})
    costs = SpaceCosts(CostModel(settings.skeleton, 10), whole_space(settings))
    most = 1.15 * costs.least
    drawn = list(itertools.islice(draw_within(costs, 0.95 * most, most, seed=0), 64))
    assert len({tuple(one.values()) for one in drawn}) == 64
    assert all(0.95 * most <= costs.of(one) <= most for one in drawn)
    assert drawn == list(itertools.islice(draw_within(costs, 0.95 * most, most, seed=0), 64))
    without = {tuple(one.values()) for one in drawn[:8]}
    assert next(draw_within(costs, 0.95 * most, most, seed=0, exclude=without)) == drawn[8]


@pytest.mark.parametrize("layers", [120, *range(131, 137), 400])
def test_more_than_a_float_counts_is_drawn(layers):
    """Not listed, though the ways are counted in units of 1e200 then."""
    costs = SimpleNamespace(
        counts={f"layer{number}": {f"operator{cost}": cost for cost in range(32)} for number in range(layers)},
        least=0,
        largest=31 * layers,
        of=lambda sample: sum(int(name.removeprefix("operator")) for name in sample.values()),
    )
    assert random_draws._Window(costs, 0, math.inf).count > 1e150
    drawn = list(itertools.islice(draw_within(costs, 10 * layers, 14 * layers, seed=0), 20))
    assert all(10 * layers <= costs.of(one) <= 14 * layers for one in drawn)
    assert len(drawn) == 20
