"""What the study of the whole procedure trains, and what it does not train twice."""

from types import SimpleNamespace

import pytest

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.studies import competition
from hitdet_nni.studies.competition import Competition, SearchStudy
from hitdet_nni.studies.search_study import random_competitors, searches


def architecture(operator):
    return Architecture.model_construct(sample={"backbone/l01": operator})


@pytest.fixture
def two(tmp_path):
    """The competition of two seeds."""
    return Competition(searches(load_settings("tiny"), load_search_space("full"), 2, 8, tmp_path), tmp_path)


def test_what_two_ways_come_to_is_trained_once(two, monkeypatch):
    two.add(0, "front", architecture("a"))
    two.add(0, "handmade", architecture("b"))
    two.add(0, "parameters", architecture("a"))
    two.add(1, "front", architecture("a"))  # of another seed
    assert [job.folder.name for job in two.jobs] == ["front-seed-0", "handmade-seed-0", "front-seed-1"]
    measured = []

    def accuracies(job, validation):
        measured.append(job.folder.name)
        return 0.0, {"a": 0.5, "b": 0.25}[job.architecture.sample["backbone/l01"]] + job.settings.seed

    monkeypatch.setattr(competition, "accuracies", accuracies)
    first, second = two.outcomes("validation")
    assert (first.seed, first.by_way) == (0, {"front": 0.5, "handmade": 0.25, "parameters": 0.5})
    assert (second.seed, second.by_way) == (1, {"front": 1.5})
    assert len(measured) == len(set(measured)) == 3


@pytest.mark.parametrize("order", ["choice last", "choice first"])
def test_a_training_that_a_choice_has_begun_is_gone_on_with(two, order):
    """By all ways that have come to its architecture."""
    begun = SimpleNamespace(path="choice")
    entries = [("front", None), ("best of front", begun)]
    for way, run in entries if order == "choice last" else reversed(entries):
        two.add(0, way, architecture("a"), run)
    [job] = two.jobs
    assert job.begun is begun


@pytest.mark.parametrize(("changed", "key"), [({"samples": 16}, "--samples"), ({"top": 1}, "--top")])
def test_a_study_goes_on_with_the_numbers_that_it_began_with(changed, key, tmp_path, tiny_data, monkeypatch, refused):
    numbers = {"seeds": 2, "samples": 8, "top": 4, "randoms": 3}

    def run(**more):
        settings = load_settings("tiny", {"search.budget.gflops": 0.03})
        SearchStudy(settings, load_search_space("full"), tiny_data, tmp_path, **numbers | more).run()

    def searched(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(competition, "run_jobs", searched)
    for more in ({}, {"seeds": 3, "randoms": 9}):  # of these there may be more
        with pytest.raises(KeyboardInterrupt):
            run(**more)
    with refused(key, "in the study there"):
        run(**changed)


def test_more_random_ones_than_there_are_are_refused_before_the_searches(tmp_path, tiny_data, monkeypatch, refused):
    """What the price asks for beyond ``--randoms`` is as many as there are."""
    space = {"backbone": ["sep_k3_d1"], "neck": ["sep_k3_d1"], "head": ["sep_k3_d1", "conv_k3_d1"]}
    settings = load_settings("tiny", {"search.budget.gflops": 1})
    monkeypatch.setattr(competition, "run_jobs", lambda *_: pytest.fail("a search has begun"))
    study = SearchStudy(settings, space, tiny_data, tmp_path, seeds=1, samples=8, top=1, randoms=5)
    with refused("--randoms", "4 of 5 random architectures were found"):
        study.run()
    (one,) = searches(settings, space, 1, 8, tmp_path)
    assert len(random_competitors(one, tiny_data, 9)) == 4
