"""Successive halving: what is trained until when, what goes on, and that nothing is trained twice."""

import csv
import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from hitdet_nni.config.architecture import Architecture, Provenance
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.training_log import read_training_log
from hitdet_nni.studies import successive_halving
from hitdet_nni.studies.retrainings import Retraining, go_on_from, retrain_once
from hitdet_nni.studies.successive_halving import (
    Rung,
    UntilPause,
    best_by_halving,
    epochs_before,
    epochs_left,
    halving_in_words,
    last_loss,
    rungs,
    train_until_pause,
)


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [
        (2, 24, [(2, 12)]),  # where none would be out there is no pause
        (3, 24, [(3, 3), (2, 12)]),
        (4, 24, [(4, 3), (2, 12)]),
        (6, 24, [(6, 3), (2, 12)]),
        (7, 24, [(7, 3), (3, 6), (2, 12)]),
        (12, 24, [(12, 3), (4, 6), (2, 12)]),
        (28, 24, [(28, 3), (10, 6), (4, 12)]),
        (100, 24, [(100, 3), (34, 6), (12, 12)]),  # the first pause is where it is, however many there are
        (4, 2, [(4, 1)]),
        (4, 3, [(4, 1), (2, 2)]),
        (4, 1, [(4, 1)]),  # there is no shorter training: all are trained whole
    ],
)
def test_a_third_goes_on_at_each_pause(count, epochs, expected):
    assert rungs(count, epochs) == [Rung(*each) for each in expected]


@pytest.mark.parametrize(("count", "epochs"), list(itertools.product((2, 3, 5, 9, 28, 64), (1, 2, 3, 7, 24, 100))))
def test_ever_fewer_go_on_for_ever_longer(count, epochs):
    found = rungs(count, epochs)
    assert [rung.trained for rung in found] == sorted({rung.trained for rung in found}, reverse=True)
    assert [rung.epochs for rung in found] == sorted({rung.epochs for rung in found})
    assert found[0].trained == count
    assert found[-1].epochs <= epochs


def test_the_epochs_of_a_choice_are_counted_once():
    assert epochs_before(4, 24) == 4 * 3 + 2 * 9
    assert epochs_before(28, 24) == 28 * 3 + 10 * 3 + 4 * 6
    assert (epochs_left(28, 24), epochs_left(4, 1)) == (12, 0)


def test_the_price_is_said_before_it_is_paid():
    assert halving_in_words(28, 24) == (
        "28 to epoch 3, 10 to epoch 6, 4 to epoch 12, the best one to 24; as many epochs as 6.2 whole trainings have"
    )


def test_the_last_loss_is_that_of_the_last_third():
    assert last_loss([9.0, 9.0, 9.0, 9.0, 2.0, 4.0]) == pytest.approx(3.0)
    assert last_loss([9.0, 9.0, 1.0]) == 1.0
    assert last_loss([7.0]) == 7.0


def named(*names):
    return [SimpleNamespace(name=name, sample={"head/l01": name}) for name in names]


def known_losses(monkeypatch, losses):
    """Have trainings end with known losses at once; return a list of what is trained until when."""
    trained = []

    def train(one):
        trained.append((one.architecture.name, one.epochs))
        return losses[one.architecture.name]

    monkeypatch.setattr(successive_halving, "train_until_pause", train)
    return trained


def rows_of(folder):
    with (folder / "rungs.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_better_third_goes_on(tmp_path, monkeypatch):
    """Seven with known losses: whatever their order, each is trained as it should, and the best is found."""
    trained = known_losses(monkeypatch, {name: place / 10 for place, name in enumerate("gbfdcea")})
    best = best_by_halving(named(*"abcdefg"), load_settings("digits"), tmp_path)
    assert best.architecture.name == "g"
    assert best.begun == RunDirectory(tmp_path / "g")
    assert trained == [*((name, 3) for name in "abcdefg"), *((name, 6) for name in "bfg"), ("b", 12), ("g", 12)]
    rows = rows_of(tmp_path)
    assert [row["architecture"] for row in rows if row["kept"] == "1"] == ["g", "b", "f", "g", "b", "g"]
    assert [(row["epochs"], float(row["loss"])) for row in rows if row["rung"] == "3"] == [("12", 0.0), ("12", 0.1)]


def test_of_the_last_ones_one_is_left_however_many_there_were(tmp_path, monkeypatch):
    known = {f"{number:02d}": number / 20 for number in range(50)}
    trained = known_losses(monkeypatch, known)
    assert best_by_halving(named(*reversed(known)), load_settings("digits"), tmp_path).architecture.name == "00"
    assert len(trained) == 50 + 17 + 6
    assert [row["kept"] for row in rows_of(tmp_path) if row["rung"] == "3"] == ["1", *["0"] * 5]


def test_a_pause_that_was_noted_is_not_trained_to_again(tmp_path, monkeypatch):
    losses = {"a": 0.3, "b": 0.2, "c": 0.1}
    known_losses(monkeypatch, losses)
    assert best_by_halving(named(*"abc"), load_settings("digits"), tmp_path).architecture.name == "c"
    rows = (tmp_path / "rungs.csv").read_text().splitlines()
    (tmp_path / "rungs.csv").write_text("\n".join(rows[:4]) + "\n")  # the first pause
    left_over = RunDirectory(tmp_path / "a").checkpoints("retrain")
    left_over.mkdir(parents=True)
    trained = known_losses(monkeypatch, {**losses, "b": 0.0})
    assert best_by_halving(named(*"abc"), load_settings("digits"), tmp_path).architecture.name == "b"
    assert trained == [("b", 12), ("c", 12)]
    assert not left_over.exists()  # what is out goes no further
    (tmp_path / "rungs.csv").write_text("rung,loss\n1,2\n")
    with pytest.raises(InputError, match=r"is not a table of pauses; allowed: .* or the choice anew, without"):
        best_by_halving(named(*"abc"), load_settings("digits"), tmp_path)


SETTINGS = {
    "data.train": 12,
    "data.val": 4,
    "retrain.epochs": 4,
    "retrain.milestones": [3],
    "retrain.warmup_iterations": 5,
    "retrain.val_interval": 3,
    "checkpoint.every_steps": 2,
}


@pytest.fixture(scope="module")
def plain():
    settings = load_settings("tiny", SETTINGS)
    data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
    sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
    provenance = Provenance(classes=data.classes)
    return settings, Architecture(
        schema_version=1, name="plain", skeleton=settings.skeleton, sample=sample, provenance=provenance
    )


@pytest.mark.parametrize(
    "changed", [pytest.param({}, marks=pytest.mark.slow), {"ema": 0.1, "patience": 2, "val_interval": 1}]
)
def test_a_training_that_pauses_ends_as_one_that_does_not(changed, plain, tmp_path, monkeypatch):
    settings, architecture = plain
    settings = settings.model_copy(update={"retrain": settings.retrain.model_copy(update=changed)})
    whole = retrain_once(Retraining(settings, tmp_path / "whole", architecture))
    folder = tmp_path / "begun"

    def until(epochs):
        return train_until_pause(UntilPause(settings, folder, architecture, epochs))

    first = until(1)
    with monkeypatch.context() as context:
        steps = []

        def interrupted(loop, *arguments, original=ResumableTrainLoop.run_iter):
            steps.append(loop._step)
            if len(steps) == 3:  # behind a checkpoint in the middle of the second epoch
                raise KeyboardInterrupt
            original(loop, *arguments)

        context.setattr(ResumableTrainLoop, "run_iter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            until(2)
    second = until(2)
    assert until(2) == second != first
    assert not RunDirectory(folder).metrics.exists()
    evaluated = [epoch for epoch, _ in read_training_log(RunDirectory(folder).retrain).evaluations]
    assert evaluated == ([0, 1, 2] if "patience" in changed else [])  # before the pause nobody asks for them
    assert len(list(RunDirectory(folder).checkpoints("retrain").iterdir())) == 1
    other = tmp_path / "other"
    assert train_until_pause(UntilPause(settings, other, architecture, 2)) == second
    resumed = Retraining(settings, tmp_path / "resumed", architecture, RunDirectory(folder))
    assert retrain_once(resumed) == whole
    weights = [torch.load(tmp_path / name / "retrain/weights.pth", weights_only=True) for name in ("whole", "resumed")]
    assert all(torch.equal(one, weights[1]["state_dict"][name]) for name, one in weights[0]["state_dict"].items())
    logs = [read_training_log(tmp_path / name / "retrain") for name in ("whole", "resumed")]
    assert logs[0].evaluations == logs[1].evaluations  # the curves are whole
    assert [epoch for epoch, _ in logs[0].losses] == [epoch for epoch, _ in logs[1].losses] == [1, 2, 3, 4]
    go_on_from(RunDirectory(other), RunDirectory(tmp_path / "resumed"))  # which has ended: nothing happens
    assert RunDirectory(other).checkpoints("retrain").exists()
    shutil.rmtree(tmp_path / "resumed")  # to have it done again, where the checkpoints are gone
    assert retrain_once(resumed) == whole


def test_one_that_diverges_is_out_and_the_others_go_on(plain, tmp_path, monkeypatch, caplog):
    settings, architecture = plain

    def diverge(*arguments, **options):
        raise NonFiniteLossError("retrain", 3, (7,), None)

    monkeypatch.setattr(successive_halving, "train_until", diverge)
    one = UntilPause(settings, tmp_path / "b", architecture, 1)
    assert train_until_pause(one) == math.inf
    assert "plain goes no further: retrain: the loss is not finite in step 4" in caplog.text
    shutil.rmtree(tmp_path / "b")
    monkeypatch.setattr(distributed, "launched", lambda: True)
    with pytest.raises(NonFiniteLossError):
        train_until_pause(one)


def test_what_diverges_comes_last(tmp_path, monkeypatch):
    known_losses(monkeypatch, {"a": math.inf, "b": 1.0})
    assert best_by_halving(named(*"ab"), load_settings("digits"), tmp_path).architecture.name == "b"
    assert [row["loss"] for row in rows_of(tmp_path)] == ["1.0", "inf"]
