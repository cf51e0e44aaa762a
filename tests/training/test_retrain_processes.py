"""A retraining by several processes: the numbers of one process with the whole batch."""

import logging
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from group import run_group
from mmdet.models.task_modules.samplers import RandomSampler

from hitdet_nni.config.architecture import Architecture, Provenance
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.training.coco_metric import ExactCocoMetric
from hitdet_nni.training.retrain import retrain


def retraining(folder, batch_size, batch_norm, precision="fp32", stop_at=None, ema=None):
    """Retrain for eight steps; the weights of this process, and what it was told."""
    settings = load_settings(
        "tiny",
        {
            "data.train": 16,
            "data.val": 5,  # not the same number for both processes
            "data.batch_size": batch_size,
            "skeleton.input_size": [64, 64],
            "batch_norm": batch_norm,
            "precision": precision,
            "retrain.ema": ema,
            "checkpoint.every_steps": 3,
        },
    )
    data = open_data(settings.data, settings.seed)
    architecture = Architecture(
        schema_version=1,
        name="plain",
        skeleton=settings.skeleton,
        sample={layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()},
        provenance=Provenance(classes=data.classes),
    )
    result = {"told": []}
    run, run_iter = ResumableTrainLoop.run, ResumableTrainLoop.run_iter

    def keep_states(self):
        result["initial"] = {key: value.clone() for key, value in self.runner.model.state_dict().items()}
        model = run(self)
        result["state"] = {key: value.clone() for key, value in model.state_dict().items()}
        return model

    def stop(self, idx, batch):
        if self.iter == stop_at:
            raise InterruptedError
        run_iter(self, idx, batch)

    with pytest.MonkeyPatch.context() as patch, notes_of("hitdet_nni.training.retrain") as notes:
        patch.setattr(ResumableTrainLoop, "run", keep_states)
        patch.setattr(ResumableTrainLoop, "run_iter", stop)
        if batch_norm == "frozen":
            # What is sampled depends on the random numbers of a process: the first anchors and RoIs are taken instead.
            patch.setattr(RandomSampler, "random_choice", lambda self, gallery, number: gallery[:number])
        # COCO's metrics of such a detector are zero.
        patch.setattr(ExactCocoMetric, "compute_metrics", total_score)
        try:
            outcome = retrain(
                architecture,
                settings,
                data,
                Path(folder),
                lambda epoch, metrics: result["told"].append(epoch),
                resume=True,
            )
        except InterruptedError:
            return {}
    result["metrics"] = [outcome.before["mAP"], outcome.metrics["mAP"]]
    (result["line"],) = (note for note in notes if "learning rate" in note)
    return result


@contextmanager
def notes_of(name):
    """What a logger is told; of a process of a group, where there is no caplog, as well."""
    notes = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)  # a level that is only assigned leaves what logging remembers of the one before
    try:
        yield notes
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


def total_score(self, results):
    assert len(results) == 5
    return {"bbox_mAP": sum(float(detections["scores"].sum()) for _, detections in results)}


def test_two_processes_retrain_as_one_with_the_whole_batch(tmp_path):
    first, second = run_group(retraining, tmp_path, str(tmp_path / "two"), 2, "frozen")
    one = retraining(tmp_path / "one", 4, "frozen")
    assert (first["told"], second["told"]) == ([0, 1, 2], [])
    assert first["state"].keys() == one["state"].keys()
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key])
        torch.testing.assert_close(value, one["state"][key], rtol=0, atol=1e-5)
    changes = [(value - first["initial"][key]).abs().max() for key, value in first["state"].items()]
    assert max(changes) > 1e-2
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert first["line"].endswith("learning rate 0.04 x 4 / 4 = 0.04 for a global batch of 4 = 2 x 2")
    assert one["line"].endswith("learning rate 0.04 x 4 / 4 = 0.04 for a global batch of 4 = 1 x 4")


def stopped_and_not(folder, precision, ema):
    """An uninterrupted retraining, and one that was stopped in the second epoch."""
    whole = retraining(f"{folder}/whole", 2, "local", precision, ema=ema)
    assert not retraining(f"{folder}/stopped", 2, "local", precision, stop_at=5, ema=ema)
    return {"whole": whole, "stopped": retraining(f"{folder}/stopped", 2, "local", precision, ema=ema)}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "ema"), [("bf16", None), ("fp32", 0.1)])
def test_stopped_processes_end_as_if_never_stopped(tmp_path, precision, ema):
    shares = run_group(stopped_and_not, tmp_path, str(tmp_path), precision, ema)
    whole = shares[0]["whole"]
    for other in (shares[0]["stopped"], shares[1]["whole"], shares[1]["stopped"]):
        assert other["metrics"] == whole["metrics"]
        assert not [key for key, value in whole["state"].items() if not torch.equal(value, other["state"][key])]
