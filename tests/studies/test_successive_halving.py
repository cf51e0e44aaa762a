"""Successive halving: what is trained for how long, what is kept, and that nothing is trained twice."""

import csv
import math
from types import SimpleNamespace

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine import distributed
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.runs.training_log import TrainingLog
from hitdet_nni.studies import successive_halving
from hitdet_nni.studies.successive_halving import (
    Rung,
    best_by_halving,
    epochs_before,
    halving_in_words,
    last_loss,
    rungs,
    shortened,
)


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [
        (2, 24, [(2, 12)]),
        (4, 24, [(4, 6), (2, 12)]),
        (5, 24, [(5, 3), (3, 6), (2, 12)]),
        (8, 24, [(8, 3), (4, 6), (2, 12)]),
        (16, 24, [(16, 2), (8, 3), (4, 6), (2, 12)]),
        (28, 24, [(28, 2), (14, 3), (7, 6), (4, 12)]),  # one epoch says nothing
        (4, 2, [(4, 1), (2, 1)]),
    ],
)
def test_each_rung_is_twice_as_long_for_half_as_many(count, epochs, expected):
    assert rungs(count, epochs) == [Rung(*each) for each in expected]


def test_the_epochs_of_a_choice_are_those_of_its_trainings():
    assert epochs_before(4, 24) == 4 * 6 + 2 * 12
    assert epochs_before(28, 24) == 28 * 2 + 14 * 3 + 7 * 6 + 4 * 12


def test_the_price_is_said_before_it_is_paid():
    assert halving_in_words(28, 24) == (
        "shorter trainings before the whole one: 28 of 2 epochs, 14 of 3 epochs, 7 of 6 epochs, 4 of 12 epochs; "
        "as many epochs as 7.8 whole ones have"
    )


def test_of_the_last_ones_one_is_left_however_many_there_were(tmp_path, monkeypatch):
    known = {f"{number:02d}": number / 20 for number in range(20)}
    trained = []

    def train(job):
        trained.append(job.settings.retrain.epochs)
        log = job.folder / "retrain" / "20260101_000000" / "20260101_000000.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"x - Epoch(train)  [{trained[-1]}][50/60]  lr: 1.0e-02  loss: {known[job.architecture.name]}\n")
        return {"mAP": 0.5}

    monkeypatch.setattr(successive_halving, "retrain_once", train)
    best = best_by_halving(
        [SimpleNamespace(name=name, sample={"head/l01": name}) for name in reversed(known)],
        load_settings("digits"),
        tmp_path,
    )
    assert best.name == "00"
    assert sum(trained) == epochs_before(20, 24)
    with (tmp_path / "rungs.csv").open() as stream:
        assert [row["kept"] for row in csv.DictReader(stream) if row["rung"] == "4"] == ["1", "0", "0"]


def test_a_shorter_training_has_its_schedule():
    whole = load_settings("digits").retrain
    short = shortened(whole, 6)
    assert (short.epochs, short.milestones, short.val_interval) == (6, (4, 5), 6)
    assert short.warmup_iterations == round(whole.warmup_iterations / 4)
    assert short.lr == whole.lr
    assert shortened(whole, 1).milestones == (1,)


def test_the_last_loss_is_that_of_the_last_third():
    log = TrainingLog(losses=((1.0, 9.0), (2.0, 9.0), (4.0, 9.0), (5.0, 2.0), (5.5, 3.0), (6.0, 4.0)))
    assert last_loss(log, 6) == pytest.approx(3.0)
    assert last_loss(TrainingLog(losses=((1.0, 9.0),)), 6) == math.inf


def test_the_better_half_goes_on(tmp_path, monkeypatch):
    """Five with known losses: whatever their order, each is trained as it should, and the best is found."""
    known = {"a": 0.9, "b": 0.5, "c": 0.7, "d": 0.6, "e": 0.8}
    trained = []

    def train(job):
        trained.append((job.architecture.name, job.settings.retrain.epochs, job.folder.name))
        log = job.folder / "retrain" / "20260101_000000" / "20260101_000000.log"
        log.parent.mkdir(parents=True)
        epochs = job.settings.retrain.epochs
        log.write_text(f"x - Epoch(train)  [{epochs}][50/60]  lr: 1.0e-02  loss: {known[job.architecture.name]}\n")
        return {"mAP": 1 - known[job.architecture.name]}

    monkeypatch.setattr(successive_halving, "retrain_once", train)
    architectures = [SimpleNamespace(name=name, sample={"head/l01": name}) for name in known]
    best = best_by_halving(architectures, load_settings("digits"), tmp_path)
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
    assert [(float(row["loss"]), float(row["mAP"])) for row in rows if row["rung"] == "3"] == [(0.5, 0.5), (0.6, 0.4)]


def test_one_that_diverges_is_out_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    def train(job):
        if job.architecture.name == "b":
            raise NonFiniteLossError("retrain", 3, (7,), None)
        log = job.folder / "retrain" / "20260101_000000" / "20260101_000000.log"
        log.parent.mkdir(parents=True)
        log.write_text(f"x - Epoch(train)  [{job.settings.retrain.epochs}][50/60]  lr: 1.0e-02  loss: 1.0\n")
        return {"mAP": 0.1}

    monkeypatch.setattr(successive_halving, "retrain_once", train)
    architectures = [SimpleNamespace(name=name, sample={"head/l01": name}) for name in "bac"]
    assert best_by_halving(architectures, load_settings("digits"), tmp_path).name == "a"
    assert "b goes no further: retrain: the loss is not finite in step 4" in caplog.text
    with (tmp_path / "rungs.csv").open() as stream:
        assert [row["loss"] for row in csv.DictReader(stream) if row["architecture"] == "b"] == ["inf"]
    monkeypatch.setattr(distributed, "launched", lambda: True)
    with pytest.raises(NonFiniteLossError):
        best_by_halving(architectures, load_settings("digits"), tmp_path)
