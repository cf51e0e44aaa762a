"""What a retraining may be made by: optimisers, schedules, a moving average, an early end, each exactly resumable."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from hitdet_nni.config.architecture import Architecture, Provenance
from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine.checkpoints import CheckpointFolder, plain_state
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.engine.moving_average import MovingAverage
from hitdet_nni.engine.progress import listening
from hitdet_nni.engine.training_state import Position, TrainingCheckpoints, TrainingObjects
from hitdet_nni.engine.weights_file import read_state
from hitdet_nni.model.detector import build_detector
from hitdet_nni.training.coco_metric import ExactCocoMetric
from hitdet_nni.training.retrain import export_config, retrain
from hitdet_nni.training.step import RetrainStep

SETTINGS = {
    "data.train": 16,
    "data.val": 4,
    "skeleton.input_size": [64, 64],
    "skeleton.roi_samples": 8,
    "retrain.epochs": 3,  # of 4 steps
    "retrain.milestones": [2],
    "retrain.warmup_iterations": 0,
    "checkpoint.every_steps": 3,
}

RECIPES = {
    "standard": {"data.augment": "standard", "data.flip": True, "retrain.ema": 0.1},
    "strong": {
        "data.augment": "strong",
        "retrain.optimizer": "adamw",
        "retrain.lr": 1e-3,
        "retrain.schedule": "cosine",
        "retrain.ema": 0.05,
        "retrain.patience": 9,
    },
}


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def _metrics_that_tell_detectors_apart(monkeypatch):
    """A few steps leave COCO's metrics at zero; the sum of all scores differs."""

    def compute_metrics(self, results):
        return {"bbox_mAP": sum(float(detections["scores"].sum()) for _, detections in results)}

    monkeypatch.setattr(ExactCocoMetric, "compute_metrics", compute_metrics)


@pytest.fixture(scope="module")
def architecture(tiny_data):
    skeleton = load_settings("tiny", SETTINGS).skeleton
    sample = {layer.label: "sep_k3_d1" for layer in skeleton.searched_layers()}
    provenance = Provenance(classes=tiny_data.classes)
    return Architecture(schema_version=1, name="plain", skeleton=skeleton, sample=sample, provenance=provenance)


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [("strong", [7]), *(pytest.param(each, [2, 11], marks=pytest.mark.slow) for each in RECIPES)],
)
def test_a_training_that_was_killed_goes_on_exactly(architecture, tiny_data, tmp_path, monkeypatch, recipe, steps):
    settings = load_settings("tiny", SETTINGS | RECIPES[recipe])
    whole = retrain(architecture, settings, tiny_data, tmp_path / "whole")
    for step in steps:
        folder, calls, real = tmp_path / f"killed-{step}", [], ResumableTrainLoop.run_iter

        def counting(*arguments, real=real, calls=calls, step=step):
            calls.append(1)
            if len(calls) > step:
                raise StoppedError
            real(*arguments)

        with monkeypatch.context() as context:
            context.setattr(ResumableTrainLoop, "run_iter", counting)
            with pytest.raises(StoppedError):
                retrain(architecture, settings, tiny_data, folder)
        again = retrain(architecture, settings, tiny_data, folder, resume=True)
        states = [read_state(each.weights) for each in (whole, again)]
        assert all(states[0][name].equal(states[1][name]) for name in states[0])
        assert (again.before, again.metrics) == (whole.before, whole.metrics)


def test_the_average_is_kept_and_evaluated(architecture, tiny_data, tmp_path):
    values = SETTINGS | {"retrain.epochs": 2}
    plain, averaged = (
        retrain(architecture, load_settings("tiny", values | more), tiny_data, tmp_path / name)
        for name, more in (("plain", {}), ("averaged", {"retrain.ema": 0.1}))
    )
    assert plain.before == averaged.before
    assert plain.metrics != averaged.metrics
    state = read_state(averaged.weights)
    assert state.keys() == read_state(plain.weights).keys()
    assert not state["rpn_head.rpn_conv.weight"].equal(read_state(plain.weights)["rpn_head.rpn_conv.weight"])


def test_a_checkpoint_without_the_average_is_refused(tmp_path, refused):
    """As earlier versions saved it, each process its own."""
    model, folder = torch.nn.Linear(2, 2), CheckpointFolder(tmp_path)
    checkpoints = TrainingCheckpoints(folder, every_steps=0)
    plain = TrainingObjects(model, [], [], {})
    checkpoints.save(Position(1, 0, 5), plain)
    saved = checkpoints.load()
    saved.restore(plain)
    with refused(tmp_path, "earlier version, without average", "--force"):
        saved.restore(TrainingObjects(model, [], [], {}, {"average": MovingAverage(model, 0.1)}))


def test_a_moving_average_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    share, average = 0.1, MovingAverage(model, 0.1)
    expected = None
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean += 1
        average.update(model)
        own = {name: value.clone() for name, value in model.state_dict().items()}
        if expected is None:
            expected = own
        else:
            weight = (1 - share) * math.exp(-(1 + step) / 2) + share  # mmdet's warm-up over .2 / .1 steps
            expected = {
                name: (1 - weight) * value + weight * own[name] if value.is_floating_point() else value
                for name, value in expected.items()
            }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place_of(model):
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[name])
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    other = MovingAverage(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.1)
    other.load_state_dict(plain_state(average.state_dict()))
    other.give_to(model)
    torch.testing.assert_close(model[0].weight.data, expected["0.weight"])


@pytest.mark.parametrize(
    "warmup", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 4]
)
def test_a_cosine_from_the_first_step_to_the_last(architecture, tiny_data, tmp_path, monkeypatch, warmup):
    rates, kinds, real = [], set(), RetrainStep.step

    def recording(self, **kwargs):
        rates.append(self.optimizer.param_groups[0]["lr"])
        kinds.add(type(self.optimizer).__name__)
        real(self, **kwargs)

    monkeypatch.setattr(RetrainStep, "step", recording)
    more = {"retrain.schedule": "cosine", "retrain.optimizer": "adamw", "retrain.lr": 1e-3, "lr_batch_size": "null"}
    settings = load_settings("tiny", SETTINGS | more | {"retrain.warmup_iterations": warmup, "lr_batch_size": None})
    retrain(architecture, settings, tiny_data, tmp_path)
    assert kinds == {"AdamW"}
    for step, rate in enumerate(rates):
        risen = 1.0 if step >= warmup else 0.1 + 0.9 * step / warmup
        assert rate == pytest.approx(1e-3 * risen * 0.5 * (1 + math.cos(math.pi * step / 12)), rel=1e-6), step


def test_patience(architecture, tiny_data, tmp_path, monkeypatch):
    values = iter([0, 0, 0, 0, 0.3, 0.2, 0.4, 0.4, 0.1, 0.9, 0.9])
    monkeypatch.setattr(ExactCocoMetric, "compute_metrics", lambda self, results: {"bbox_mAP": next(values)})
    told = []
    settings = load_settings("tiny", SETTINGS | {"retrain.epochs": 10, "retrain.patience": 2})

    def train(**options):
        return retrain(
            architecture, settings, tiny_data, tmp_path, lambda epoch, metrics: told.append(epoch), **options
        )

    heard = []
    with listening(heard.append):
        outcome = train()
    assert [one.doing for one in heard[-2:]] == ["evaluating", "ended"]
    # Nothing found is no reason to end; .4 after .4 and .1 are no better than .4.
    assert told == list(range(9))
    assert outcome.metrics == {"mAP": 0.1}
    assert train(resume=True).metrics == {"mAP": 0.1}
    assert told == list(range(9))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_exported_config_trains_in_plain_mmdet(architecture, tiny_data, tmp_path, recipe):
    settings = load_settings("tiny", SETTINGS | RECIPES[recipe] | {"retrain.epochs": 1, "retrain.milestones": [1]})
    (tmp_path / "config.py").write_text(export_config(architecture, settings, tiny_data))
    config = Config.fromfile(tmp_path / "config.py")
    config.work_dir = str(tmp_path / "work")
    runner = Runner.from_cfg(config)
    runner.train()
    kinds = {type(hook).__name__ for hook in runner.hooks}
    assert "EMAHook" in kinds
    assert ("EarlyStoppingHook" in kinds) == (recipe == "strong")
    assert type(runner.optim_wrapper.optimizer).__name__ == ("AdamW" if recipe == "strong" else "SGD")
    assert (
        build_detector(architecture.skeleton, architecture.sample, 10).state_dict().keys()
        == runner.model.state_dict().keys()
    )
