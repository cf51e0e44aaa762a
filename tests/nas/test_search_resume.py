"""A search that was interrupted anywhere ends as if it had not been."""

import math

import pytest
import torch

from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.precision import Precision
from hitdet_nni.errors import InputError, NonFiniteLossError
from hitdet_nni.nas import evaluator
from hitdet_nni.nas.epoch_watcher import SearchMonitor
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.supernet import Phase, train_supernet

SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1", "sep_k5_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1"],
}
EPOCHS, STEPS = 3, 2
PHASE = {"sparsity_weight": 0.1, "flops_weight": 1.0, "pruning": PruningSchedule(keep={"backbone": 2, "neck": 2})}


class KilledError(Exception):
    """What stands for the end of the process."""


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", {"data.train": 16, "data.val": 4, "data.flip": True, "checkpoint.every_steps": 1})


def train(settings, data, folder):
    records = []
    phase = Phase(skeleton=settings.skeleton, space=SPACE, epochs=EPOCHS, warmup_epochs=1, **PHASE)
    return train_supernet(phase, settings, data, 0, records.append, folder)


@pytest.fixture(scope="module")
def uninterrupted(settings, tiny_data):
    return train(settings, tiny_data, None)


def interrupt(monkeypatch, calls, settings, data, folder):
    """Train until the process would have been killed."""
    with monkeypatch.context() as context:
        kill_after(context, calls)
        with pytest.raises(KilledError):
            train(settings, data, folder)


def kill_after(monkeypatch, calls):
    """Let the training end in its `calls`-th computation of a training loss (two a step once the alphas move)."""
    real, count = evaluator.detection_loss, 0

    def counting(detector, batch):
        nonlocal count
        count += 1
        if count > calls:
            raise KilledError
        return real(detector, batch)

    monkeypatch.setattr(evaluator, "detection_loss", counting)


def assert_equal(one, two):
    states = one.module.state_dict(), two.module.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        other = states[1][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    for first, second in zip(one.records, two.records, strict=True):
        assert {**vars(first), "seconds": 0} == {**vars(second), "seconds": 0}
    assert one.sample == two.sample


# Two losses in the epoch of warm-up, four in each of the two others.
@pytest.mark.parametrize("kills", [pytest.param([1], marks=pytest.mark.slow), [5, 3, 2]])
def test_an_interrupted_search_ends_bit_equal(settings, tiny_data, uninterrupted, kills, tmp_path, monkeypatch):
    folder, done = CheckpointFolder(tmp_path / "checkpoints"), 0
    for calls in kills:
        interrupt(monkeypatch, calls, settings, tiny_data, folder)
        state = folder.load()
        assert state is not None
        assert state["steps"] > done
        done = state["steps"]
    assert_equal(train(settings, tiny_data, folder), uninterrupted)
    # What has ended already is only read.
    again = train(settings, tiny_data, folder)
    assert_equal(again, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(settings, tiny_data, uninterrupted, tmp_path, monkeypatch, caplog):
    folder = CheckpointFolder(tmp_path)
    interrupt(monkeypatch, 8, settings, tiny_data, folder)
    newest = folder.files()[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert_equal(train(settings, tiny_data, folder), uninterrupted)
    assert [newest.name in record.message for record in caplog.records if "damaged" in record.message] == [True]
    assert folder.load() is not None


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(settings, tiny_data, uninterrupted):
    data = settings.data.model_copy(update={"workers": 2})
    assert_equal(train(settings.model_copy(update={"data": data}), tiny_data, None), uninterrupted)


def test_checkpoints_of_another_number_of_processes_are_refused(settings, tiny_data, tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    interrupt(monkeypatch, 2, settings, tiny_data, folder)
    state = folder.load()
    folder.save(state["steps"] + 1, {**state, "processes": 2})
    with pytest.raises(InputError, match=r"processes.*has 2, this training has 1.*--force"):
        train(settings, tiny_data, folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_images(settings, tiny_data, tmp_path, monkeypatch, value):
    real, count = evaluator.detection_loss, 0

    def poisoned(detector, batch):
        nonlocal count
        count += 1
        return real(detector, batch) * (value if count == 2 else 1.0)

    monkeypatch.setattr(evaluator, "detection_loss", poisoned)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(NonFiniteLossError) as caught:
        train(settings, tiny_data, folder)
    error = caught.value
    assert (error.stage, error.step) == ("search", 1)
    assert len(error.image_ids) == 4
    assert set(error.image_ids) <= set(tiny_data.train.image_ids)
    assert error.checkpoint == folder.files()[-1]
    assert "\n" not in str(error)


@pytest.mark.parametrize("by", ["the loss of the validation images", "a parameter"])
def test_a_search_whose_last_step_diverges_has_not_ended(settings, tiny_data, tmp_path, monkeypatch, by):
    """There is no next loss that could say so."""
    real, last, count = evaluator.detection_loss, STEPS + 2 * STEPS * (EPOCHS - 1), 0

    def undifferentiable(detector, batch):
        nonlocal count
        count += 1
        nothing = 0 * next(detector.parameters()).sum()
        return real(detector, batch) + (nothing.sqrt() if count == last else nothing)

    monkeypatch.setattr(evaluator, "detection_loss", undifferentiable)
    if by == "a parameter":
        monkeypatch.setattr(SearchMonitor, "_held_out", lambda monitor, module: (1.0, {}))
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(NonFiniteLossError) as caught:
        train(settings, tiny_data, folder)
    error, steps = caught.value, EPOCHS * STEPS
    assert (error.stage, error.step, error.image_ids) == ("search", steps, ())
    assert error.checkpoint == folder.files()[-1]
    assert f"{by} is not finite after step {steps}; the last good checkpoint is {error.checkpoint}" in str(error)
    assert count == last


@pytest.mark.parametrize("name", ["search", "screening neck"])
def test_an_overflow_that_no_loss_scale_ends_is_named(settings, tiny_data, tmp_path, monkeypatch, name):
    def endless(precision, optimizer, parameters, max_norm=None):
        raise FloatingPointError("gradients are not finite at any loss scale")

    monkeypatch.setattr(Precision, "step", endless)
    phase = Phase(skeleton=settings.skeleton, space=SPACE, epochs=EPOCHS, warmup_epochs=1, stage=name, **PHASE)
    with pytest.raises(
        NonFiniteLossError, match=f"{name}: gradients are not finite at any loss scale after step 0; no"
    ):
        train_supernet(phase, settings, tiny_data, 0, lambda record: None, CheckpointFolder(tmp_path))
