"""The whole procedure against what else its cost and its price would have given: sums by hand, and one run of it."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hitdet_nni import cli
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.sources import open_data
from hitdet_nni.runs.front import read_front
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.retrainings import Retraining
from hitdet_nni.studies.search_study import (
    Choice,
    Price,
    SearchOnce,
    choose,
    handmade_sample,
    random_competitors,
    searches,
    settled_price,
)
from hitdet_nni.studies.search_summary import RandomPool, SearchSummary, SeedOutcome
from hitdet_nni.studies.successive_halving import Chosen
from hitdet_nni.studies.validation_halves import halves_of


def outcome(seed, front, parameters, handmade, halved=0.0, **more):
    ways = {"front": front, "parameters": parameters, "handmade": handmade, "halved random": halved}
    return SeedOutcome(seed, ways | more)


POOL = RandomPool.of([(0.7, 0.2), (0.1, 0.6), (0.3, 0.4)])


def test_the_best_of_random_is_chosen_by_other_images_than_it_is_shown_by():
    assert POOL.chances(3).tolist() == POOL.chances(40).tolist() == [1, 0, 0]  # the one that shows .2
    assert POOL.chances(1).tolist() == pytest.approx([1 / 3] * 3)
    assert POOL.chances(2).tolist() == pytest.approx([2 / 3, 0, 1 / 3])  # pairs (1, 2), (1, 3) and (2, 3)


def test_chances_of_the_best_against_all_draws():
    random = np.random.default_rng(3)
    pool = RandomPool.of(random.random((7, 2)).round(1).tolist())  # with ties
    for count in (1, 2, 4, 7):
        draws = list(itertools.combinations(range(7), count))
        bests = [max(draw, key=lambda place: pool.chosen_by[place]) for draw in draws]
        assert pool.chances(count) == pytest.approx([bests.count(place) / len(draws) for place in range(7)])


def test_sums_of_three_seeds_by_hand():
    outcomes = [outcome(0, 0.5, 0.4, 0.6, 0.7), outcome(1, 0.6, 0.6, 0.5, 0.5), outcome(2, 0.7, 0.5, 0.6, 0.9)]
    summary = SearchSummary.of(outcomes, POOL, Price(60, 0, 60), 3)
    assert (summary.mean, summary.deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    parameters, handmade, halved, random, best = summary.against
    assert (parameters.mean, parameters.ahead, parameters.wins) == (pytest.approx(0.5), pytest.approx(0.1), 2)
    assert (handmade.mean, handmade.wins) == (pytest.approx(1.7 / 3), 2)
    assert (halved.mean, halved.ahead, halved.wins) == (pytest.approx(0.7), pytest.approx(-0.1), 1)
    assert any(
        line.startswith(
            "halved random: mAP 0.700 (sd 0.200), the best of 3 by halving; front is behind by 0.100, in 1 of 3"
        )
        for line in summary.sentences()
    )
    # Of the eight ways to exchange, the differences .1, 0, .2 are as large on average in two: 0 has no sign.
    assert parameters.p_value == pytest.approx(2 / 8)
    assert (random.mean, random.deviation, random.ahead) == (pytest.approx(0.4), pytest.approx(0.2), pytest.approx(0.2))
    # Of 20 ways to call three of .5, .6, .7, .2, .6, .4 ours, one has a sum of 1.9 and two have one of 1.8.
    assert random.p_value == pytest.approx(3 / 20)
    assert best.mean == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.4)
    assert best.deviation == pytest.approx(math.sqrt(2 / 3 * 1 / 3) * 0.2)
    assert (random.wins, best.wins) == (None, None)
    # The three pairs of one pool have their best ones in common: no test of ours against them is right.
    assert best.p_value is None
    assert "best of random: mAP 0.267 (sd 0.094), the mean over all sets of 2 of them; front is ahead by 0.333" in (
        summary.sentences()
    )
    assert summary.rank == pytest.approx((2 + 2 + 1) / 3)
    assert summary.sentences()[-1].endswith(
        "by these times its 120 s pay for the best of 2 random ones, or of 3 by halving"
    )
    assert "0.100, in 2 of 3 seeds, p 0.25" in summary.sentences()[1]
    assert "random: mAP 0.400 (sd 0.200) over 3 architectures; front is ahead by 0.200, p 0.15" in summary.sentences()
    assert summary.sentences()[-2].endswith("1.7 on average, 2.5 by chance")


@pytest.mark.parametrize("paid", [3, 40])
def test_the_best_of_all_random_ones_is_one(paid):
    """No deviation of it is known, whether the price asks for as many as there are or for more."""
    [*_, best] = (summary := SearchSummary.of([outcome(0, 0.5, 0, 0)], POOL, Price(60 * paid - 60, 0, 60), 3)).against
    assert (best.mean, best.deviation, best.ahead) == (0.2, None, pytest.approx(0.3))
    assert "best of random: mAP 0.200, the best of them all; front is ahead by 0.300" in summary.sentences()


def test_the_best_of_the_front_is_ours_where_it_was_chosen():
    ones = [outcome(seed, 0.5, 0.4, 0.3, **{"best of front": 0.65}) for seed in range(2)]
    summary = SearchSummary.of(ones, POOL, Price(1, 1, 1), 3)
    assert (summary.way, summary.mean, summary.rank) == ("best of front", pytest.approx(0.65), 1)
    assert [one.way for one in summary.against] == [
        "front",
        "parameters",
        "handmade",
        "halved random",
        "random",
        "best of random",
    ]
    assert summary.against[0].ahead == pytest.approx(0.15)
    assert summary.sentences()[1].startswith("front: mAP 0.500 (sd 0.000); best of front is ahead by 0.150, in 2 of 2")


def test_a_single_architecture_is_chosen_without_a_training(tmp_path):
    assert choose(Choice(load_settings("tiny"), tmp_path / "none", ("only",))) == Chosen("only", None)
    assert not (tmp_path / "none").exists()


def test_one_seed_proves_little():
    summary = SearchSummary.of([outcome(0, 0.5, 0.4, 0.6)], POOL, Price(1, 0, 1), 3)
    assert {one.way: one.p_value for one in summary.against} == {
        "parameters": 0.5,
        "handmade": 1.0,
        "halved random": 0.5,
        "random": pytest.approx(2 / 4),  # it and the one of .6
        "best of random": None,
    }
    assert summary.deviation is None


def test_equal_ways_are_no_better():
    pool = RandomPool.of([(0.1, 0.5), (0.2, 0.5), (0.3, 0.5)])
    outcomes = [outcome(seed, 0.5, 0.5, 0.5, 0.5) for seed in range(3)]
    for one in SearchSummary.of(outcomes, pool, Price(1, 1, 1), 3).against:
        assert (one.ahead, one.wins or 0, one.p_value or 1) == (0, 0, 1)


@pytest.mark.parametrize(
    ("search", "choice", "training", "count"),
    [(300, 0, 100, 4), (349, 0, 100, 4), (351, 0, 100, 5), (1, 0, 100, 2), (300, 200, 100, 6)],
)
def test_as_many_random_ones_as_search_choice_and_training_pay(search, choice, training, count):
    assert Price(search, choice, training).randoms == count


@pytest.mark.parametrize(
    ("price", "count"),
    [
        (Price(900, 300, 120, 30, 0.5), 25),  # 1200 s are 120 epochs of the choice's 10 s: 25 take them, 26 take 123
        (Price(900, 300, 120), 54),  # and 1260 s are 252 epochs of a whole training's 5 s
        (Price(1, 1.5, 120, 30, 0.5), 9),  # 50 epochs of a twentieth of a second: 9 take 48, 10 take 54
        (Price(0, 0, 120), 2),
    ],
)
def test_as_many_random_ones_are_halved_as_the_same_time_pays(price, count):
    assert price.halved(24) == count


def test_of_equal_random_ones_none_is_chosen_by_its_figure():
    assert RandomPool.of([(0.7, 0.1), (0.7, 0.6)]).chances(2).tolist() == [1, 0]


def timed(folder, **seconds):
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"seconds": seconds, "warnings": {}}))
    return folder


def test_a_price_is_settled_once(tmp_path):
    settings = load_settings("digits")  # trains 24 epochs
    runs = [
        RunDirectory(timed(tmp_path / "a", screening=200, search=60, front=40, retrain=7)),
        RunDirectory(timed(tmp_path / "b", pretraining=400, screening=50, search=25, front=25)),
    ]
    among = [SimpleNamespace(name=name) for name in "xyz"]
    for each, seconds in zip(among, (100, 30, 20), strict=True):
        timed(tmp_path / "choice" / each.name, retrain=seconds)
    chosen = Choice(settings, tmp_path / "choice", tuple(among))
    alone = Choice(settings, tmp_path / "none", (SimpleNamespace(name="only"),))
    whole = Retraining(settings, timed(tmp_path / "whole", retrain=100), among[0])
    rest = Retraining(settings, timed(tmp_path / "rest", retrain=50), among[0], runs[0])
    first = settled_price(tmp_path, runs, [chosen, alone], [whole, rest])
    # Of three to epoch 3 two go on to epoch 12; the one that had no rival is trained whole.
    assert first == Price(
        search_seconds=400, choice_seconds=75, choice_epochs=(3 * 3 + 2 * 9) / 2, left=0.75, training_seconds=100
    )
    assert (first.whole, first.randoms) == (550, 6)  # 5.5 is rounded to the even number
    assert settled_price(tmp_path, runs[:1], [], [whole]) == first
    (tmp_path / "price.json").unlink()
    assert settled_price(tmp_path, runs, [], [whole]) == Price(400, 0, 100)


def test_handmade_is_one_operator_that_fills_the_budget(tiny):
    model, space = CostModel(tiny, 10), load_search_space("full")
    costs = {name: model.architecture({layer.label: name for layer in model.layers})["total"] for name in space["neck"]}
    for key, field, limits in (("gflops", "flops", (0.03, 0.06, 0.2, 9.0)), ("params_m", "params", (0.13, 0.2, 9.0))):
        found = {name: getattr(cost, field) / UNITS[key].scale for name, cost in costs.items()}
        for limit in limits:
            [name] = set(handmade_sample(model, space, BudgetSettings(**{key: limit})).values())
            assert found[name] == max(cost for cost in found.values() if cost <= limit)
        smallest = handmade_sample(model, space, BudgetSettings(**{key: 1e-6}))
        assert set(smallest.values()) == {min(found, key=found.get)}


@pytest.mark.parametrize(("key", "limit"), [("gflops", 0.075), ("params_m", 0.17)])
def test_random_ones_fill_the_budget_and_more_go_on_from_fewer(tmp_path, tiny_data, key, limit):
    settings = load_settings("tiny", {f"search.budget.{key}": limit})
    one = SearchOnce(settings, tmp_path, load_search_space("full"), 8)
    few, many = (random_competitors(one, tiny_data, count) for count in (3, 5))
    others = random_competitors(one, tiny_data, 3, seed=7)
    assert [others[name].sample for name in few] != [few[name].sample for name in few]
    assert list(few) == ["random-01", "random-02", "random-03"]
    assert [few[name].sample for name in few] == [many[name].sample for name in few]
    for each in many.values():
        cost = getattr(
            CostModel(settings.skeleton, each.num_classes).architecture(each.sample)["total"], UNITS[key].field
        )
        assert 0.9 * limit <= cost / UNITS[key].scale <= limit


def test_a_study_without_a_budget_is_refused(tmp_path, capsys):
    assert cli.main(["study", "search", "--config", "tiny", "--out", str(tmp_path / "study")]) == 2
    assert "search.budget" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_images_of_choices_have_no_figure(tiny_data):
    chosen, shown = halves_of(tiny_data.val)
    assert not set(chosen) & set(shown)
    assert sorted(chosen + shown) == sorted(tiny_data.val.image_ids)


def test_seeds_have_the_same_images(tmp_path):
    settings = load_settings("tiny", {"seed": 5})
    every = searches(settings, load_search_space("full"), 3, 8, tmp_path)
    assert [one.settings.seed for one in every] == [5, 6, 7]
    assert {one.settings.data.seed for one in every} == {5}
    assert len({one.folder for one in every}) == 3


@pytest.mark.slow
def test_the_whole_study_and_going_on_with_it(tmp_path, capsys):
    space = tmp_path / "space.yml"
    names = "[ir_k3_d1_e1, ir_k3_d1_e3, sep_k3_d1, conv_k3_d1]"
    space.write_text(f"backbone: {names}\nneck: {names}\nhead: {names}\n")
    values = {
        "space": space,
        "data.train": 16,
        "data.val": 6,
        "screening.keep": "{backbone: 3, neck: 3, head: 3}",
        "retrain.epochs": 1,
        "retrain.milestones": "[1]",
        "search.budget.gflops": 0.06,
    }
    options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "study"
    study = [
        "study",
        "search",
        "--config",
        "tiny",
        *options,
        "--samples",
        "8",
        "--top",
        "2",
        "--randoms",
        "3",
        "--out",
        str(out),
        "--json",
    ]
    assert cli.main([*study, "--seeds", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    times = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.json")}
    assert cli.main([*study, "--seeds", "2", "--resume"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in report["rows"]] == [0, 1]
    again = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.json")}
    assert times.items() <= again.items()  # nothing was trained twice
    assert report["rows"][0]["parameters"] == first["rows"][0]["parameters"]
    assert report["summary"]["price"] == first["summary"]["price"]
    randoms = max(3, Price(**report["summary"]["price"]).randoms)
    assert len(report["random"]["shown"]) == report["summary"]["architectures"] == randoms
    for seed in (0, 1):
        names = [f"{name}-seed-{seed}" for name in ("front", "parameters", "handmade", "best-of-front")]
        architectures = {tuple(report["samples"][name].items()) for name in names if name in report["samples"]}
        trained = [file for file in again if file.parent.name in names]
        assert len(trained) == len(architectures)  # none is trained twice under another name
        assert len(list((out / "runs" / f"choice-seed-{seed}").glob("*/architecture.json"))) == 2
    run = RunDirectory(out / "runs" / "search-seed-0")
    rows = read_front(run.front_table)
    settings = load_settings(run.config)
    model = CostModel(settings.skeleton, len(open_data(settings.data, settings.seed).classes))
    for name, sample in report["samples"].items():
        assert model.architecture(sample)["total"].flops / 1e9 <= 0.06, name
    ways = ("front", "parameters", "handmade", "halved random", "random", "best of random")
    halved = Price(**report["summary"]["price"]).halved(1)
    assert report["summary"]["halved"] == halved
    for seed in (0, 1):
        tried = (out / "runs" / f"random-choice-seed-{seed}").glob("*/architecture.json")
        assert len(list(tried)) == halved
        assert report["rows"][seed]["halved_random"] is not None
    assert [one["way"] for one in report["summary"]["against"]] == list(ways)
    assert report["samples"]["front-seed-0"] in [dict(row.sample) for row in rows]
    assert (out / "search.png").stat().st_size > 1000
