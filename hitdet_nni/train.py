"""Weights only: train a decided architecture with mmengine, evaluate it, write its mmdet config."""

from __future__ import annotations

import os
import pprint
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from hitdet_nni.architecture import Architecture
from hitdet_nni.data.pipeline import DetectionData, dataset_config
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_detector, detector_config
from hitdet_nni.settings import RetrainSettings, Settings
from hitdet_nni.skeleton import COMPONENTS

WEIGHTS_FILE = "weights.pth"

METRICS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
"""COCO's average precisions, by the names that mmdet gives them."""


class MetricsHook(Hook):  # type: ignore[misc]
    """Hands the average precisions of each evaluation on.

    Args:
        on_evaluation: Called with the number of finished epochs and the metrics.
    """

    def __init__(self, on_evaluation: Callable[[int, dict[str, float]], None]) -> None:
        self.on_evaluation = on_evaluation

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Pick COCO's numbers out of mmdet's."""
        self.on_evaluation(runner.epoch, coco_metrics(metrics or {}))


def coco_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The average precisions in [0, 1] by their bare names; -1 where a size has no boxes.

    mmdet gives none where nothing at all was detected, as by an untrained one-stage detector: they are zero then.
    """
    found = {name: float(metrics[f"coco/bbox_{name}"]) for name in METRICS if f"coco/bbox_{name}" in metrics}
    return found or dict.fromkeys(METRICS, 0.0)


def training_config(settings: Settings, data: DetectionData) -> dict[str, Any]:
    """The mmengine runner config of a retraining, all but the model.

    Source:
        Section 4.2: SGD, lr divided by 10 at the milestones; linear warm-up and clipping are the released
        configuration's.
    """
    retrain, skeleton = settings.retrain, settings.skeleton
    return {
        "train_dataloader": {
            **_loader(settings),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "drop_last": len(data.train.image_ids) >= settings.data.batch_size,
            "dataset": dataset_config(data.train, skeleton, training=True, flip=settings.data.flip),
        },
        "train_cfg": {
            "type": "EpochBasedTrainLoop",
            "max_epochs": retrain.epochs,
            "val_interval": retrain.val_interval,
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {
                "type": "SGD",
                "lr": retrain.lr,
                "momentum": retrain.momentum,
                "weight_decay": retrain.weight_decay,
            },
            "clip_grad": None if retrain.grad_clip is None else {"max_norm": retrain.grad_clip},
        },
        "param_scheduler": _schedule(retrain),
        "default_hooks": {
            "checkpoint": None,  # mmengine's checkpoints hold pickled objects; the weights alone are saved below
            "logger": {"type": "LoggerHook", "interval": 50},
        },
        "randomness": {"seed": settings.seed},
        **_evaluation_config(settings, data),
    }


def _loader(settings: Settings) -> dict[str, Any]:
    data = settings.data
    return {
        "batch_size": data.batch_size,
        "num_workers": data.workers,
        "persistent_workers": data.workers > 0,
        "collate_fn": {"type": "pseudo_collate"},
    }


def _schedule(retrain: RetrainSettings) -> list[dict[str, Any]]:
    steps = {
        "type": "MultiStepLR",
        "by_epoch": True,
        "begin": 0,
        "end": retrain.epochs,
        "milestones": list(retrain.milestones),
        "gamma": 0.1,
    }
    if not retrain.warmup_iterations:
        return [steps]
    warmup = {
        "type": "LinearLR",
        "start_factor": 0.1,
        "by_epoch": False,
        "begin": 0,
        "end": retrain.warmup_iterations,
    }
    return [warmup, steps]


def _evaluation_config(settings: Settings, data: DetectionData) -> dict[str, Any]:
    return {
        "val_dataloader": {
            **_loader(settings),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "drop_last": False,
            "dataset": dataset_config(data.val, settings.skeleton, training=False),
        },
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "CocoMetric", "ann_file": str(data.val.ann), "metric": "bbox", "_scope_": "mmdet"},
    }


@contextmanager
def muted() -> Iterator[None]:
    """Keep what mmengine and pycocotools print off standard output; mmengine's log file has it all."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


@dataclass(frozen=True)
class Retrained:
    """The outcome of a retraining.

    Attributes:
        before: Metrics of the initial weights.
        metrics: Metrics of the final weights.
        weights: File of the final weights.
    """

    before: dict[str, float]
    metrics: dict[str, float]
    weights: Path


def retrain(
    architecture: Architecture,
    settings: Settings,
    data: DetectionData,
    work_dir: Path,
    on_evaluation: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> Retrained:
    """Train an architecture from scratch with mmengine's ``Runner`` and evaluate it as COCO does.

    Args:
        architecture: What to train; its skeleton replaces the settings'.
        settings: Data, seed and the ``retrain`` section.
        data: The pictures.
        work_dir: Folder for checkpoints and mmengine's logs.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation.

    Source:
        Section 4.2, training details, without the ImageNet pretraining.
    """
    settings = _with_skeleton(settings, architecture)
    evaluations: list[dict[str, float]] = []
    stdout = sys.stdout

    def keep(epoch: int, metrics: dict[str, float]) -> None:
        evaluations.append(metrics)
        with redirect_stdout(stdout):  # the caller is not to be muted with mmengine
            on_evaluation(epoch, metrics)

    with muted():
        runner = _runner(architecture, settings, data, work_dir, training_config(settings, data))
        runner.register_hook(MetricsHook(keep))
        runner.val()
        runner.train()
        if settings.retrain.epochs % settings.retrain.val_interval:
            runner.val()  # the last epoch has not been evaluated yet
    weights = work_dir / WEIGHTS_FILE
    save_weights(runner.model, weights)
    return Retrained(evaluations[0], evaluations[-1], weights)


def evaluate(architecture: Architecture, weights: Path, settings: Settings, data: DetectionData) -> dict[str, float]:
    """COCO metrics of an architecture with given weights.

    Args:
        architecture: What the weights belong to.
        weights: A file of :func:`retrain`.
        settings: Data settings.
        data: The pictures; those of validation are used.

    Raises:
        InputError: If the file is missing, does not hold weights, or of another architecture.
    """
    settings = _with_skeleton(settings, architecture)
    with muted(), TemporaryDirectory() as work_dir:
        runner = _runner(architecture, settings, data, Path(work_dir), _evaluation_config(settings, data))
        load_weights(runner.model, weights)
        return coco_metrics(runner.val())


def save_weights(detector: nn.Module, path: Path) -> None:
    """Save a detector's weights and nothing else, atomically."""
    temporary = path.with_suffix(".partial")
    torch.save({"state_dict": detector.state_dict()}, temporary)
    temporary.replace(path)


def load_weights(detector: nn.Module, path: Path) -> None:
    """Load weights into a detector; all must be there with their shapes. Nothing in the file is executed.

    Raises:
        InputError: If the file is missing, does not hold weights, or holds those of another architecture.
    """
    if not path.is_file():
        raise InputError("no such file", source=path)
    allowed = f"a file such as {WEIGHTS_FILE} of a retraining"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have no common exception for a broken file
        problem = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be read as weights: {problem}", source=path, allowed=allowed) from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise InputError("has no state_dict", source=path, allowed=allowed)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split()[:30])
        raise InputError(f"does not fit the architecture: {problem} ...", source=path) from None


def _with_skeleton(settings: Settings, architecture: Architecture) -> Settings:
    return settings.model_copy(update={"skeleton": architecture.skeleton})


def _runner(
    architecture: Architecture, settings: Settings, data: DetectionData, work_dir: Path, config: dict[str, Any]
) -> Runner:
    if architecture.num_classes != len(data.classes):
        raise InputError(
            f"the data has {len(data.classes)} classes",
            source=data.train.ann,
            key="categories",
            allowed=f"{architecture.num_classes}, as the architecture {architecture.name!r} was searched for",
        )
    torch.manual_seed(settings.seed)
    detector = build_detector(architecture.skeleton, architecture.sample, architecture.num_classes)
    common = {
        "default_scope": "mmdet",
        "log_level": "INFO",
        "visualizer": {"type": "Visualizer", "vis_backends": []},
        # One runner a process is mmengine's assumption; its registries want a name for each.
        "experiment_name": f"{work_dir.resolve()}-{time.monotonic_ns()}",
    }
    return Runner(model=detector, work_dir=str(work_dir), **common, **config)


def export_config(architecture: Architecture, settings: Settings, data: DetectionData) -> str:
    """The text of a self-contained mmdet config of an architecture: model, data, schedule.

    Plain mmdet and mmengine build and train it; ``custom_imports`` registers the three modules.
    """
    settings = _with_skeleton(settings, architecture)
    operators = {
        component: [architecture.sample[label] for label in architecture.skeleton.labels(component)]
        for component in COMPONENTS
    }
    config: dict[str, Any] = {
        "custom_imports": {
            "imports": [f"hitdet_nni.model.{component}" for component in COMPONENTS],
            "allow_failed_imports": False,
        },
        "default_scope": "mmdet",
        "model": detector_config(architecture.skeleton, operators, architecture.num_classes),
        **training_config(settings, data),
    }
    config["default_hooks"] = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1}}
    title = f"# mmdet config of the architecture {architecture.name!r}, written by hitdet-nni."
    return (
        "\n".join([title, *(f"{key} = {pprint.pformat(value, sort_dicts=False)}" for key, value in config.items())])
        + "\n"
    )
