"""The whole procedure against what else its cost and its price would have given: sums by hand, and one run of it."""

import json

import pytest

from hitdet_nni import cli
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import open_data
from hitdet_nni.runs.front import read_front
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.search_study import Choice, Price, choose, handmade_sample, searches, settled_price
from hitdet_nni.studies.search_summary import SearchSummary, SeedOutcome
from hitdet_nni.studies.validation_halves import halves_of


def outcome(seed, front, parameters, handmade, random):
    """`random` are pairs of mAP on the images of choices and on those of figures."""
    found = {"front": (0.9, front), "parameters": (0.1, parameters), "handmade": (0.2, handmade)}
    return SeedOutcome.of(seed, 0.1, found | {f"random-{number:02d}": pair for number, pair in enumerate(random, 1)})


def test_the_best_of_random_is_chosen_by_other_images_than_it_is_shown_by():
    one = outcome(3, 0.5, 0.4, 0.3, [(0.7, 0.2), (0.1, 0.6), (0.3, 0.4)])
    assert one.by_way["best of random"] == 0.2
    assert one.by_way["random"] == pytest.approx(0.4)
    assert one.by_way["front"] == 0.5
    assert list(one.random) == [0.2, 0.6, 0.4]


def test_sums_of_three_seeds_by_hand():
    outcomes = [
        outcome(0, 0.5, 0.4, 0.6, [(0.2, 0.3), (0.1, 0.1)]),
        outcome(1, 0.6, 0.6, 0.5, [(0.2, 0.7), (0.1, 0.5)]),
        outcome(2, 0.7, 0.5, 0.6, [(0.2, 0.4), (0.1, 0.2)]),
    ]
    summary = SearchSummary.of(outcomes, Price(120, 0, 60))
    assert (summary.mean, summary.deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    parameters, random, best, handmade = summary.against
    assert (parameters.mean, parameters.ahead, parameters.wins) == (pytest.approx(0.5), pytest.approx(0.1), 2)
    assert (random.mean, random.wins) == (pytest.approx(1.1 / 3), 2)
    assert random.ahead == pytest.approx(0.6 - 1.1 / 3)
    assert (best.mean, best.wins) == (pytest.approx(1.4 / 3), 2)
    assert (handmade.mean, handmade.wins) == (pytest.approx(1.7 / 3), 2)
    # Of the eight ways to exchange, the differences .1, 0, .2 are as large on average in two: 0 has no sign.
    assert parameters.p_value == pytest.approx(2 / 8)
    assert summary.rank == pytest.approx((1 + 2 + 1) / 3)
    assert "the best of 3 random ones costs 180 s against 180 s" in summary.sentences()[-1]
    assert "0.100, in 2 of 3 seeds, p 0.25" in summary.sentences()[1]


def test_the_best_of_the_front_is_ours_where_it_was_chosen():
    ones = [outcome(seed, 0.5, 0.4, 0.3, [(0.1, 0.1), (0.2, 0.5)]) for seed in range(2)]
    ones = [SeedOutcome(one.seed, one.gflops, {**one.by_way, "best of front": 0.6}, one.random) for one in ones]
    summary = SearchSummary.of(ones, Price(1, 1, 1))
    assert (summary.way, summary.mean, summary.rank) == ("best of front", pytest.approx(0.6), 1)
    assert [one.way for one in summary.against] == ["front", "parameters", "random", "best of random", "handmade"]
    assert summary.against[0].ahead == pytest.approx(0.1)
    assert summary.sentences()[1].startswith("front: mAP 0.500 (sd 0.000); best of front is ahead by 0.100, in 2 of 2")


def test_a_single_architecture_is_chosen_without_a_training(tmp_path):
    assert choose(Choice(load_settings("tiny"), tmp_path / "none", ("only",))) == "only"
    assert not (tmp_path / "none").exists()


def test_one_seed_proves_nothing():
    summary = SearchSummary.of([outcome(0, 0.5, 0.4, 0.6, [(0.1, 0.1), (0.2, 0.2)])], Price(1, 1, 1))
    assert {one.way: one.p_value for one in summary.against} == {
        "parameters": 0.5,
        "random": 0.5,
        "best of random": 0.5,
        "handmade": 1.0,
    }
    assert summary.deviation is None


def test_equal_ways_are_no_better():
    outcomes = [outcome(seed, 0.5, 0.5, 0.5, [(0.1, 0.5), (0.2, 0.5)]) for seed in range(3)]
    assert all(
        (one.ahead, one.wins, one.p_value) == (0, 0, 1) for one in SearchSummary.of(outcomes, Price(1, 1, 1)).against
    )


@pytest.mark.parametrize(
    ("search", "choice", "training", "count"),
    [(300, 0, 100, 4), (349, 0, 100, 4), (351, 0, 100, 5), (1, 0, 100, 2), (300, 200, 100, 6)],
)
def test_as_many_random_ones_as_search_choice_and_training_pay(search, choice, training, count):
    assert Price(search, choice, training).randoms == count


def test_of_equal_random_ones_none_is_chosen_by_its_figure():
    one = outcome(0, 0.5, 0.4, 0.3, [(0.7, 0.1), (0.7, 0.6)])
    assert one.by_way["best of random"] == 0.1


def test_a_price_is_settled_once(tmp_path):
    first = settled_price(tmp_path, [300, 500], [150, 250], [100, 100])
    assert first == Price(400, 200, 100)
    assert (first.whole, first.randoms) == (700, 7)
    assert settled_price(tmp_path, [9, 9], [1], [1, 1]) == first


def test_handmade_is_one_operator_that_fills_the_cost(tiny):
    model, space = CostModel(tiny, 10), load_search_space("full")
    costs = {
        name: model.architecture({layer.label: name for layer in model.layers})["total"].flops / 1e9
        for name in space["neck"]
    }
    for limit in (0.03, 0.06, 0.2, 9.0):
        [name] = set(handmade_sample(model, space, limit).values())
        assert costs[name] == max(cost for cost in costs.values() if cost <= limit)
    assert set(handmade_sample(model, space, 1e-6).values()) == {min(costs, key=costs.get)}


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
    randoms = Price(**report["summary"]["price"]).randoms
    assert [len(report["random"][seed]) for seed in ("0", "1")] == [randoms] * 2
    for seed in (0, 1):
        names = [f"{name}-seed-{seed}" for name in ("front", "parameters", "handmade", "best-of-front")]
        architectures = {tuple(report["samples"][name].items()) for name in names if name in report["samples"]}
        trained = [file for file in again if file.parent.name in names]
        assert len(trained) == len(architectures)  # none is trained twice under another name
        assert len(list((out / "runs" / f"choice-seed-{seed}").glob("rung-1-*/metrics.json"))) == 2
    run = RunDirectory(out / "runs" / "search-seed-0")
    rows = read_front(run.front_table)
    settings = load_settings(run.config)
    model = CostModel(settings.skeleton, len(open_data(settings.data, settings.seed).classes))
    limit = report["rows"][0]["gflops"]
    for name, sample in report["samples"].items():
        if name.endswith("seed-0") and not name.startswith("handmade"):
            assert model.architecture(sample)["total"].flops / 1e9 <= limit
    ways = ("front", "parameters", "random", "best of random", "handmade")
    assert [one["way"] for one in report["summary"]["against"]] == list(ways)
    assert report["samples"]["front-seed-0"] in [dict(row.sample) for row in rows]
    assert (out / "search.png").stat().st_size > 1000
