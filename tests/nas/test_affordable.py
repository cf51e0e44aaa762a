"""What a screening keeps lets the search keep its budget, and is the best otherwise."""

import random
import shutil

import pytest

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.errors import InputError
from hitdet_nni.nas.affordable import affordable
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.outlook import Outlook
from hitdet_nni.pipeline.screening import hand_on, screen, screening_key
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import Score

SPACE = load_search_space("full")
MODEL = CostModel(load_settings("digits").skeleton, 10)
COSTS = Outlook.of(MODEL, SPACE).costs


def budget(limit: float, key: str = "gflops", space=SPACE) -> Budget:
    return Budget(MODEL, space, BudgetSettings(**{key: limit}))


def shuffled(seed: int) -> dict[str, list[str]]:
    generator = random.Random(seed)
    return {component: generator.sample(names, len(names)) for component, names in SPACE.items()}


def handed_on(order: dict[str, list[str]], count: int, limit: Budget) -> dict[str, list[str]]:
    kept = {component: names[:count] for component, names in order.items()}
    return affordable(kept, {component: names[count:] for component, names in order.items()}, limit)


@pytest.mark.parametrize("key", ["gflops", "params_m"])
@pytest.mark.parametrize("above", [1e-6, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 8])
def test_whatever_the_ranks_are_the_budget_stays_within_reach(key, above, count):
    costs = COSTS[key]
    limit = costs.least + above * (costs.uniform - costs.least)
    for seed in range(20):
        order = shuffled(seed)
        kept = handed_on(order, count, budget(limit, key))
        assert all(len(set(names)) == count for names in kept.values())
        budget(limit, key, kept).check_reachable()
        # A quarter of what the budget has above the cheapest architecture is left for the choice.
        most = costs.least + 0.75 * (limit - costs.least) + 1e-6
        assert Outlook.of(MODEL, kept).costs[key].least <= most
        best = {component: names[:count] for component, names in order.items()}
        if Outlook.of(MODEL, best).costs[key].least <= most - 2e-6:
            assert kept == best


def test_components_within_their_part_keep_their_best():
    """Dense convolutions are the best in the head alone, as a screening of few epochs has it."""
    dense_first = sorted(SPACE["head"], key=lambda name: not name.startswith("conv"))
    order = {**shuffled(0), "head": [name for name in dense_first if name.startswith(("conv", "ir"))]}
    order = {**order, "backbone": sorted(SPACE["backbone"]), "neck": sorted(SPACE["neck"], reverse=True)}
    kept = handed_on(order, 3, budget(COSTS["gflops"].uniform * 0.8))
    assert kept["neck"] == order["neck"][:3]
    assert kept["head"][:2] == order["head"][:2]
    assert kept["head"][2].startswith("ir")


def test_of_those_that_are_cheap_enough_the_best_takes_the_place():
    names = ["conv_k5_d1", "conv_k3_d1", "sep_k3_d1", "sep_k5_d1"]
    space = dict.fromkeys(SPACE, names)
    limit = budget(Outlook.of(MODEL, space).costs["gflops"].uniform, space=space)
    for first, second in (("sep_k3_d1", "sep_k5_d1"), ("sep_k5_d1", "sep_k3_d1")):
        reserve = {component: ["conv_k3_d1", first, second] for component in SPACE}
        kept = affordable({component: ["conv_k5_d1"] for component in SPACE}, reserve, limit)
        assert kept["head"] == [first]


@pytest.fixture
def screened(tmp_path):
    """A run whose screening has ranked the dearest operators of every component first."""
    run = RunDirectory(tmp_path / "run")
    model = CostModel(load_settings("tiny").skeleton, 10)
    layers = {layer.component: layer for layer in model.layers}
    for component, names in SPACE.items():
        order = sorted(names, key=lambda name: model.layer_cost(layers[component], name).flops, reverse=True)
        run.write_scores(
            component,
            [Score(0, name, 1 - rank / 40, rank, removed=rank > 8) for rank, name in enumerate(order, 1)],
        )
    return run, Outlook.of(model, SPACE).costs["gflops"], model


def test_the_search_is_handed_operators_that_keep_its_budget(screened, tiny_data):
    run, costs, model = screened
    limit = (costs.least + costs.uniform) / 2
    changed = {"screening.supernets": 1, "search.budget.gflops": limit}
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4, **changed})
    kept = screen(run, SPACE, settings, tiny_data)
    assert kept == load_search_space(run.sub_spaces) == screen(run, SPACE, settings, tiny_data)
    best = {component: run.kept_operators(component) for component in SPACE}
    assert kept != best
    assert Outlook.of(model, kept).costs["gflops"].least <= limit < Outlook.of(model, best).costs["gflops"].least


def test_without_a_budget_the_best_are_handed_on(screened, tiny_data):
    run, *_ = screened
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4, "screening.supernets": 1})
    assert screen(run, SPACE, settings, tiny_data) == {name: run.kept_operators(name) for name in SPACE}


def test_a_budget_out_of_reach_is_refused_before_the_screening(tmp_path, tiny_data):
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4, "search.budget.gflops": 1e-6})
    with pytest.raises(InputError, match="or more"):
        screen(RunDirectory(tmp_path), SPACE, settings, tiny_data)
    assert list(tmp_path.iterdir()) == []


def test_trials_of_other_budgets_share_a_screening():
    keys = [
        screening_key(load_settings("digits", changed), SPACE)
        for changed in (
            {},
            {"search.flops_weight": 3.0},
            {"search.budget.gflops": 0.07},
            {"search.budget.gflops": 0.08},
        )
    ]
    assert len(set(keys)) == 1


def test_each_trial_is_handed_what_its_own_budget_allows(screened, tmp_path, tiny_data):
    """The scores are shared, the sub search spaces are not."""
    shared, costs, model = screened
    limits = [costs.largest, (costs.least + costs.uniform) / 2]
    kept = []
    for limit in limits:
        run = RunDirectory(tmp_path / f"{limit}")
        shutil.copytree(shared.screening, run.screening)
        kept.append(hand_on(run, SPACE, load_settings("tiny", {"search.budget.gflops": limit}), 10))
        assert Outlook.of(model, kept[-1]).costs["gflops"].least <= limit
    assert kept[0] == {name: shared.kept_operators(name) for name in SPACE} != kept[1]
    assert not shared.sub_spaces.exists()
