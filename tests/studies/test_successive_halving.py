"""Successive halving: what is trained for how long, what is kept, and that nothing is trained twice."""

import csv
from types import SimpleNamespace

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.studies import successive_halving
from hitdet_nni.studies.successive_halving import Rung, best_by_halving, rungs, shortened


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [
        (2, 24, [(2, 12)]),
        (4, 24, [(4, 6), (2, 12)]),
        (5, 24, [(5, 3), (3, 6), (2, 12)]),
        (8, 24, [(8, 3), (4, 6), (2, 12)]),
        (4, 2, [(4, 1), (2, 1)]),
    ],
)
def test_each_rung_is_twice_as_long_for_half_as_many(count, epochs, expected):
    assert rungs(count, epochs) == [Rung(*each) for each in expected]


def test_a_shorter_training_has_its_schedule():
    whole = load_settings("digits").retrain
    short = shortened(whole, 6)
    assert (short.epochs, short.milestones, short.val_interval) == (6, (4, 5), 6)
    assert short.warmup_iterations == round(whole.warmup_iterations / 4)
    assert short.lr == whole.lr
    assert shortened(whole, 1).milestones == (1,)


def test_the_better_half_goes_on(tmp_path, monkeypatch):
    """Five with known accuracies: whatever their order, each is trained as it should, and the best is found."""
    known = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.4, "e": 0.2}
    trained = []

    def train(job):
        trained.append((job.architecture.name, job.settings.retrain.epochs, job.folder.name))

    monkeypatch.setattr(successive_halving, "retrain_once", train)
    monkeypatch.setattr(successive_halving, "accuracies", lambda job, validation: (known[job.architecture.name], -1.0))
    architectures = [SimpleNamespace(name=name) for name in known]
    best = best_by_halving(architectures, load_settings("digits"), tmp_path, None)
    assert best.name == "b"
    assert [(name, epochs) for name, epochs, _ in trained] == [
        *((name, 3) for name in "abcde"),
        *((name, 6) for name in "bdc"),
        *((name, 12) for name in "bd"),
    ]
    assert len({folder for *_, folder in trained}) == len(trained)
    with (tmp_path / "rungs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["architecture"] for row in rows if row["kept"] == "1"] == ["b", "d", "c", "b", "d", "b"]
    assert {row["epochs"] for row in rows if row["rung"] == "2"} == {"6"}
