"""Exact resume of a retraining: stopped anywhere, it ends with the weights and metrics of one that never stopped."""

import copy
import gc
import json
import logging
import random
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from hitdet_nni.config.architecture import Architecture, Provenance
from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine.checkpoints import CheckpointFolder, plain_state
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.progress import listening
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.model.detector import build_detector
from hitdet_nni.pipeline.retraining import retrain_architecture
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.training_log import read_training_log
from hitdet_nni.training.coco_metric import ExactCocoMetric
from hitdet_nni.training.retrain import retrain
from hitdet_nni.training.step import RetrainStep

SETTINGS = {
    "data.train": 16,
    "data.val": 4,
    "data.flip": True,
    "skeleton.input_size": [64, 64],
    "skeleton.roi_samples": 8,  # fewer than there are proposals: sampling draws random numbers
    "retrain.epochs": 3,  # of 4 steps
    "retrain.val_interval": 2,
    "retrain.milestones": [2],
    "retrain.warmup_iterations": 6,
    "checkpoint.every_steps": 3,
}


@pytest.fixture(scope="module", autouse=True)
def _metrics_that_tell_detectors_apart():
    """A few steps leave COCO's metrics at zero; the sum of all scores differs."""

    def compute_metrics(self, results):
        return {"bbox_mAP": sum(float(detections["scores"].sum()) for _, detections in results)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactCocoMetric, "compute_metrics", compute_metrics)
        yield


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """mmengine's data sets collect garbage when they are built: a second each among all that mmdet imports."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", SETTINGS)


@pytest.fixture(scope="module")
def architecture(settings, tiny_data):
    sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
    provenance = Provenance(classes=tiny_data.classes)
    return Architecture(
        schema_version=1, name="plain", skeleton=settings.skeleton, sample=sample, provenance=provenance
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, settings, tiny_data, architecture):
    outcome = retrain(architecture, settings, tiny_data, tmp_path_factory.mktemp("whole"))
    assert 0 < outcome.before["mAP"] != outcome.metrics["mAP"]
    return outcome


def assert_equal(one, two):
    states = [torch.load(outcome.weights, weights_only=True)["state_dict"] for outcome in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert not [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    assert (one.before, one.metrics) == (two.before, two.metrics)


class StoppedError(Exception):
    """Stands for the end of the process."""


PLACES = {
    "step": (ResumableTrainLoop, "run_iter"),
    "behind a checkpoint": (CheckpointFolder, "save"),
    "end of an epoch": (ResumableTrainLoop, "_evaluate_if_due"),  # the epoch's checkpoint has been made
    "evaluation": (ExactCocoMetric, "compute_metrics"),
}


def stop(monkeypatch, place, number):
    """Let the training end in the `number`-th call (from 1) of what stands for a place."""
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), 0

    def counting(*args, **kwargs):
        nonlocal calls
        calls += 1
        if place == "behind a checkpoint":
            result = original(*args, **kwargs)
        if calls == number:
            raise StoppedError
        return result if place == "behind a checkpoint" else original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


def stopped(monkeypatch, place, number, *arguments, **options):
    with monkeypatch.context() as context:
        stop(context, place, number)
        with pytest.raises(StoppedError):
            retrain(*arguments, **options)


@pytest.fixture(scope="module")
def in_the_second_epoch(tmp_path_factory, settings, tiny_data, architecture):
    """What a retraining leaves that stopped in its seventh step; its checkpoints are those of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped(pytest.MonkeyPatch(), "step", 7, architecture, settings, tiny_data, folder)
    assert sorted(path.name[:14] for path in (folder / "checkpoints").iterdir()) == ["step-000000004", "step-000000006"]
    return folder


@pytest.fixture
def left_behind(in_the_second_epoch, tmp_path):
    return shutil.copytree(in_the_second_epoch, tmp_path / "copy")


# Each stop is counted from where the one before it left off.
STOPS = [
    ("evaluation", 1, None),  # before training
    ("step", 1, None),
    ("behind a checkpoint", 1, 0),  # in the middle of the first epoch
    ("step", 5, 3),  # in the middle of the second
    ("end of an epoch", 2, 6),  # the first call is that of the resume itself
    ("evaluation", 1, 8),  # the one that is due from before
    ("step", 4, 8),  # the last step
    ("evaluation", 1, 9),  # after the last epoch, which no interval ends
]


def test_stopped_again_and_again_ends_as_if_never_stopped(
    tmp_path, monkeypatch, settings, tiny_data, architecture, uninterrupted
):
    evaluated = []

    def note(epoch, metrics):
        evaluated.append(epoch)

    folder = CheckpointFolder(tmp_path / "checkpoints")
    for place, number, begin in STOPS:
        state = folder.load()
        assert (None if state is None else state["steps"]) == begin
        stopped(monkeypatch, place, number, architecture, settings, tiny_data, tmp_path, note, resume=True)
        torch.manual_seed(1)  # the process that goes on has other random numbers at first
    outcome = retrain(architecture, settings, tiny_data, tmp_path, note, resume=True)
    assert_equal(outcome, uninterrupted)
    assert evaluated == [0, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_stopped_at_random_ends_as_if_never_stopped(
    seed, tmp_path, monkeypatch, settings, tiny_data, architecture, uninterrupted
):
    rng = random.Random(seed)
    step = rng.randint(1, 12)
    stopped(monkeypatch, "step", step, architecture, settings, tiny_data, tmp_path)
    stopped(
        monkeypatch,
        *rng.choice([("step", 1), ("evaluation", 1)]),
        architecture,
        settings,
        tiny_data,
        tmp_path,
        resume=True,
    )
    assert_equal(retrain(architecture, settings, tiny_data, tmp_path, resume=True), uninterrupted)


def test_worker_processes_change_nothing(left_behind, settings, tiny_data, architecture, uninterrupted):
    with_workers = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 2})})
    assert_equal(retrain(architecture, with_workers, tiny_data, left_behind, resume=True), uninterrupted)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    left_behind, caplog, settings, tiny_data, architecture, uninterrupted
):
    logger = logging.getLogger("hitdet_nni.engine.checkpoints")
    logger.addHandler(caplog.handler)  # a command that was run before may have stopped propagation
    last = CheckpointFolder(left_behind / "checkpoints").files()[-1]
    last.write_bytes(last.read_bytes()[:-1000])
    assert_equal(retrain(architecture, settings, tiny_data, left_behind, resume=True), uninterrupted)
    logger.removeHandler(caplog.handler)
    assert {"WARNING"} == {record.levelname for record in caplog.records if str(last) in record.getMessage()}


def test_checkpoints_hold_nothing_but_what_training_needs(left_behind):
    (file, *_) = (left_behind / "checkpoints").iterdir()
    state = torch.load(file, weights_only=True)  # neither the message hub nor any other object
    assert set(state) == {
        "processes", "start", "images", "epoch", "step_in_epoch", "steps", "module", "optimizers", "schedulers",
        "shared", "each",
    }  # fmt: skip
    assert [set(own) for own in state["each"]] == [{"random", "parts"}]
    assert [set(own["parts"]) for own in state["each"]] == [{"loop"}]


def test_the_loss_scale_is_part_of_the_state():
    def step_of(weight):
        precision = Precision("bf16", torch.device("cpu"))
        precision.scaler = torch.amp.GradScaler("cpu")  # fp16's; the CPU computes gradients of fp32 with it
        return RetrainStep(torch.optim.SGD([weight], 0.1, momentum=0.9), precision=precision, max_norm=1.0)

    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    step = step_of(one)
    step.update_params((one * torch.tensor([3.0, 4.0])).sum())
    torch.testing.assert_close(one.data, torch.tensor([0.94, 0.92]))  # the gradient's norm is 5 and clipped to 1
    step.update_params((one * 1e38).sum())  # overflows with the scale: left out, and the scale is halved
    torch.testing.assert_close(one.data, torch.tensor([0.94, 0.92]))
    resumed = step_of(two)
    resumed.load_state_dict(copy.deepcopy(plain_state(step.state_dict())))
    assert resumed.precision.scaler.get_scale() == 2.0**15
    two.data.copy_(one.data)
    for each, weight in ((step, one), (resumed, two)):
        each.update_params(weight.sum())
    assert torch.equal(one, two)
    with pytest.raises(FloatingPointError, match="nan"):
        step.update_params(one.sum() * float("nan"))


def test_checkpoints_of_another_retraining_are_refused(
    left_behind, tmp_path, refused, settings, tiny_data, architecture
):
    folder = CheckpointFolder(left_behind / "checkpoints")
    with refused(folder.path, "--resume"):
        retrain(architecture, settings, tiny_data, left_behind)
    supernet = tmp_path / "supernet.pth"
    save_weights(build_detector(settings.skeleton, architecture.sample, architecture.num_classes), supernet)
    with refused(folder.path, "start", "new weights", "the weights of supernet.pth"):
        retrain(architecture, settings, tiny_data, left_behind, resume=True, inherit=supernet)
    content = json.loads(tiny_data.train.ann.read_text())
    content["annotations"][0]["bbox"][2] += 1  # as after another look at the labels
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = replace(tiny_data, train=replace(tiny_data.train, ann=tmp_path / "other.json"))
    with refused(folder.path, "images", "the checkpoint has 16 images, digest", "this training has 16 images, digest"):
        retrain(architecture, settings, other, left_behind, resume=True)
    folder.save(7, {**folder.load(), "processes": 2})
    with refused(folder.path, "processes", "has 2"):
        retrain(architecture, settings, tiny_data, left_behind, resume=True)


def test_a_finished_retraining_keeps_no_checkpoints_and_is_not_repeated(tmp_path, settings, tiny_data, architecture):
    short = settings.model_copy(update={"retrain": settings.retrain.model_copy(update={"epochs": 2})})
    run, evaluated = RunDirectory(tmp_path / "run"), []
    run.open(short)
    heard = []
    with listening(heard.append):
        result = retrain_architecture(
            run, architecture, short, tiny_data, lambda epoch, metrics: evaluated.append(epoch)
        )
    # What the report draws of an epoch of few steps is what was told of it.
    told = {one.epoch: one.results["loss"] for one in heard if "loss" in one.results and one.step == 0}
    assert dict(read_training_log(run.retrain).losses) == pytest.approx(told, abs=1e-4)
    assert not run.checkpoints("retrain").exists()
    assert json.loads(run.metrics.read_text()) == result
    assert (run.path / result["weights"]).is_file()
    again = retrain_architecture(
        run, architecture, short, tiny_data, lambda epoch, metrics: evaluated.append(epoch), resume=True
    )
    assert again == result
    assert evaluated == [0, 2]


def test_a_diverged_retraining_says_where(tmp_path, settings, tiny_data, architecture):
    update = {"lr": 1e25, "grad_clip": None, "warmup_iterations": 0}
    diverging = settings.model_copy(update={"retrain": settings.retrain.model_copy(update=update)})
    with pytest.raises(NonFiniteLossError) as caught:
        retrain(architecture, diverging, tiny_data, tmp_path)
    error = caught.value
    assert error.step == 1
    assert set(error.image_ids) <= set(tiny_data.train.image_ids)
    assert len(error.image_ids) == settings.data.batch_size
    assert error.checkpoint.name.startswith("step-000000000-")
    for part in ("retrain", "step 2", str(error.image_ids[0]), str(error.checkpoint)):
        assert part in str(error)
