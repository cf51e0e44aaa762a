"""The benchmark of ways to find a front: its hypervolume in closed form, and ways that try as many as they should."""

import math

import pytest

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.nas.front import FrontSearch


@pytest.fixture(scope="module")
def methods(benchmark_scripts):
    return benchmark_scripts("front_methods")["front_methods"]


def test_hypervolume_is_the_share_of_the_box(methods):
    """Costs 1 to 100, losses 0 to 4: a point at cost 10 and loss 1 beats half of the width and three quarters."""
    box = (1.0, 0.0), (100.0, 4.0)
    assert methods.hypervolume([(10.0, 1.0)], *box) == pytest.approx(0.5 * 0.75)
    # One more at cost 1 and loss 2 beats half of the height in the first half, one that is beaten adds nothing.
    assert methods.hypervolume([(10.0, 1.0), (1.0, 2.0), (50.0, 3.0)], *box) == pytest.approx(0.5 * 0.75 + 0.5 * 0.5)
    assert methods.hypervolume([(1.0, 0.0)], *box) == pytest.approx(1.0)
    assert methods.hypervolume([(10.0, 5.0), (200.0, 1.0)], *box) == 0.0


@pytest.mark.parametrize("way", ["front", "random"])
def test_a_way_tries_as_many_different_architectures_as_asked(methods, way):
    settings = load_settings("tiny")
    space = {component: names[:4] for component, names in load_search_space("full").items()}
    model = CostModel(settings.skeleton, 10)
    candidates = {layer.label: tuple(space[layer.component]) for layer in model.layers}
    search = FrontSearch(model, space, "gflops", candidates)
    evaluated = []

    def losses(samples):
        evaluated.extend(tuple(sample.values()) for sample in samples)
        return [1.0 / search.cost(sample) for sample in samples]

    tried = methods.WAYS[way](search, losses, 24, 3)
    assert len(tried) == len(evaluated) == len(set(evaluated)) == 24
    again = methods.WAYS[way](search, lambda samples: [1.0 / search.cost(one) for one in samples], 24, 3)
    assert [one.sample for one in again] == [one.sample for one in tried]


def test_figures_compare_with_ours_seed_by_seed(methods):
    points = [(1.0, 1.0)]
    found = [
        methods.Front("front", 0, 8, points, 0.5),
        methods.Front("front", 1, 8, points, 0.8),
        methods.Front("random", 0, 8, points * 3, 0.25),
        methods.Front("random", 1, 8, points, 0.8),
    ]
    figures = methods.WayFigures.of("random", found)
    assert figures.hypervolume == pytest.approx(0.525)
    assert figures.of_ours == pytest.approx((0.5 + 1.0) / 2)
    assert (figures.points, figures.evaluations) == (2, 8)
    assert figures.deviation == pytest.approx(0.55 / math.sqrt(2))
