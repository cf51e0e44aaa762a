"""Weights only: train a decided architecture with mmengine, evaluate it, write its mmdet config."""

from __future__ import annotations

import logging
import os
import pprint
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.loaders import end_workers, evaluation_loader
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.backbone_weights import load_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.mmengine_resume import OnEvaluation
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.engine.weights_file import load_weights, name_of_weights, read_state, save_weights
from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import WEIGHTS_FILE, writing
from hitdet_nni.kernels.depthwise_convolution import fast_depthwise
from hitdet_nni.model.detector import build_detector, detector_config
from hitdet_nni.model.replacement import replace_modules
from hitdet_nni.nas.checks import check_classes, check_initial_weights
from hitdet_nni.training.coco_evaluation import coco_metrics, evaluation_config, exact
from hitdet_nni.training.inherit import inherit_weights
from hitdet_nni.training.runner_config import STAGE, learning_rate, resumable_config, training_config

logger = logging.getLogger(__name__)


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
    on_evaluation: OnEvaluation = lambda epoch, metrics: None,
    *,
    resume: bool = False,
    inherit: Path | None = None,
    checkpoints: CheckpointFolder | None = None,
) -> Retrained:
    """Train an architecture with mmengine's ``Runner`` and evaluate it as COCO does.

    Args:
        architecture: What to train; its skeleton replaces the settings'.
        settings: Data, seed, precision, batch normalisation and the ``retrain`` section.
        data: The images.
        work_dir: Folder for the weights and mmengine's logs.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation, in the main process.
        resume: Go on from the newest checkpoint, if there is one.
        inherit: Weights file of the supernet that the architecture was found in, to start from; by default the weights
            are new, the backbone's those of ``retrain.pretrained`` if that is set.
        checkpoints: Where the state is kept, by default ``work_dir / "checkpoints"``. The caller clears it when what it
            makes of the result is written.

    Raises:
        InputError: If the data has other classes, initial weights do not fit, there are checkpoints that are not to be
            resumed, or they belong to another retraining.
        NonFiniteLossError: If the training diverges.

    Source:
        Section 4.2, training details.
    """
    precision = check_start(settings, inherit)
    settings = _with_skeleton(settings, architecture)
    return train_detector(
        lambda: _initial_detector(architecture, settings, data, inherit),
        settings,
        data,
        work_dir,
        on_evaluation,
        precision=precision,
        checkpoints=checkpoints or CheckpointFolder(work_dir / "checkpoints", settings.checkpoint.keep),
        resume=resume,
    )


def train_until(
    epochs: int,
    architecture: Architecture,
    settings: Settings,
    data: DetectionData,
    work_dir: Path,
    *,
    checkpoints: CheckpointFolder,
    inherit: Path | None = None,
) -> list[float]:
    """Do the first epochs of what :func:`retrain` does, which goes on from there as if there had been no pause.

    Args:
        epochs: Epochs of the whole training after which to pause.
        architecture: As :func:`retrain`.
        settings: As :func:`retrain`.
        data: The images.
        work_dir: Folder for mmengine's logs.
        checkpoints: Where the state is kept. What is there is gone on with.
        inherit: As :func:`retrain`.

    Returns:
        Mean training loss of each epoch that has ended, those before an earlier pause among them, of the images of
        this process; of fewer epochs where the training's patience has ended.

    Raises:
        InputError: As :func:`retrain`.
        NonFiniteLossError: If the training diverges.
    """
    precision = check_start(settings, inherit)
    settings = _with_skeleton(settings, architecture)
    detector, start = _initial_detector(architecture, settings, data, inherit)
    with muted():
        config = resumable_config(settings, data, precision, checkpoints, start, epochs)
        runner = _train(detector, config, work_dir, learning_rate(settings)[1])
    losses: list[float] = runner.train_loop.losses
    return losses


def train_detector(
    build: Callable[[], tuple[nn.Module, str]],
    settings: Settings,
    data: DetectionData,
    work_dir: Path,
    on_evaluation: OnEvaluation,
    *,
    precision: Precision,
    checkpoints: CheckpointFolder,
    resume: bool,
) -> Retrained:
    """Train any mmdet detector by the ``retrain`` section.

    Args:
        build: Makes the detector, and a name for where its weights come from.
        settings: As :func:`retrain`; its skeleton gives the size of the images.
        data: The images.
        work_dir: Folder for the weights and mmengine's logs.
        on_evaluation: As :func:`retrain`.
        precision: What losses and gradients are computed in.
        checkpoints: Where the state is kept.
        resume: Go on from the newest checkpoint, if there is one.

    Raises:
        InputError: If there are checkpoints that are not to be resumed, or they belong to another retraining.
        NonFiniteLossError: If the training diverges.
    """
    if distributed.broadcast_object(bool(checkpoints.files())) and not resume:
        raise InputError(
            "holds checkpoints of an unfinished retraining", source=checkpoints.path, allowed="--resume or --force"
        )
    detector, start = build()
    line = learning_rate(settings)[1]
    logger.info("%s: %s", STAGE, line)
    stdout = sys.stdout

    def report(epoch: int, metrics: dict[str, float]) -> None:
        with redirect_stdout(stdout):  # the caller is not to be muted with mmengine
            on_evaluation(epoch, metrics)

    with muted():
        config = resumable_config(settings, data, precision, checkpoints, start)
        runner = _train(detector, config, work_dir, line, report)
    weights = work_dir / WEIGHTS_FILE
    if distributed.is_main():
        save_weights(runner.model, weights)
    distributed.barrier()
    evaluations = runner.train_loop.evaluations
    return Retrained(evaluations[0][1], evaluations[-1][1], weights)


def _train(
    detector: nn.Module,
    config: dict[str, Any],
    work_dir: Path,
    line: str,
    on_evaluation: OnEvaluation = lambda epoch, metrics: None,
) -> Runner:
    """Train by a config of :func:`resumable_config`, and log a line before it; return mmengine's runner."""
    with writing(work_dir), _without_tracebacks():
        runner = _runner(detector, work_dir, config)
    loop = runner.train_loop
    loop.on_evaluation = on_evaluation
    try:
        with _log_kept_whole(runner.logger):
            runner.logger.info(line)
            runner.train()
    finally:
        end_workers((loop.dataloader, runner.val_dataloader))
    return runner


def check_start(settings: Settings, inherit: Path | None) -> Precision:
    """Refuse what no retraining can start with, before anything is written; return the precision that is asked for.

    Args:
        settings: All settings.
        inherit: Weights file of a supernet to start from, if any.

    Raises:
        InputError: If the device cannot compute in the precision, there are two files of initial weights, or none where
            one is named.
    """
    check_initial_weights(settings, inherit)
    return Precision(settings.precision, distributed.device())


def _initial_detector(
    architecture: Architecture, settings: Settings, data: DetectionData, inherit: Path | None
) -> tuple[nn.Module, str]:
    """Build the detector to train, and a name for where its weights come from."""
    detector, pretrained = _detector(architecture, settings, data), settings.retrain.pretrained
    if inherit is not None:
        state = read_state(inherit, allowed="the supernet.pth of a search")
        try:
            inherit_weights(detector, architecture.sample, state)
        except InputError as error:
            raise InputError(error.problem, source=inherit, key=error.key, allowed=error.allowed) from None
    elif pretrained is not None:
        load_backbone(detector.get_submodule("backbone"), pretrained, architecture.sample)
    apply_batch_norm(detector, settings.batch_norm)
    source = inherit or pretrained
    if source is None:
        return detector, "new weights"
    return detector, name_of_weights(source)


def evaluate(architecture: Architecture, weights: Path, settings: Settings, data: DetectionData) -> dict[str, float]:
    """Return the COCO metrics of an architecture with given weights.

    Args:
        architecture: What the weights belong to.
        weights: A file of :func:`retrain`.
        settings: Data settings.
        data: The images; those of validation are used.

    Raises:
        InputError: If the file is missing, does not hold weights, or of another architecture.
    """
    settings = _with_skeleton(settings, architecture)
    detector = _detector(architecture, settings, data)
    load_weights(detector, weights)
    loader = evaluation_loader(data.val, settings.data, settings.skeleton, settings.seed)
    with muted(), TemporaryDirectory() as work_dir:
        config = {**exact(evaluation_config(settings, data)), "val_dataloader": loader}
        return coco_metrics(_runner(detector, Path(work_dir), config).val())


def _with_skeleton(settings: Settings, architecture: Architecture) -> Settings:
    return settings.model_copy(update={"skeleton": architecture.skeleton})


def _detector(architecture: Architecture, settings: Settings, data: DetectionData) -> nn.Module:
    check_classes(architecture, data)
    torch.manual_seed(settings.seed)
    detector = build_detector(architecture.skeleton, architecture.sample, architecture.num_classes)
    if distributed.device().type == "cpu":
        detector.to(memory_format=torch.channels_last)
        replace_modules(detector, fast_depthwise)
    return detector


def _runner(detector: nn.Module, work_dir: Path, config: dict[str, Any]) -> Runner:
    common = {
        "default_scope": "mmdet",
        "log_level": "INFO",
        "visualizer": {"type": "Visualizer", "vis_backends": []},
        # One runner a process is mmengine's assumption; its registries want a name for each.
        "experiment_name": f"{work_dir.resolve()}-{time.monotonic_ns()}",
    }
    return Runner(model=detector, work_dir=str(work_dir), **common, **config)


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep Python from printing a traceback for each line that a log cannot take; the lines are lost."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@contextmanager
def _log_kept_whole(log: logging.Logger) -> Iterator[None]:
    """Have a log that cannot be written end the training, as any other file; the pages show its curves."""
    handlers = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    for handler in handlers:
        handler.handleError = partial(_refuse_lost_line, Path(handler.baseFilename))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handler in handlers:
            del handler.handleError


def _refuse_lost_line(log: Path, record: logging.LogRecord) -> None:
    """Raise what keeps a line from being written; called where it is being handled."""
    error = sys.exc_info()[1]
    raise WriteError(log, getattr(error, "strerror", None) or str(error)) from error


def export_config(architecture: Architecture, settings: Settings, data: DetectionData) -> str:
    """Return the text of a self-contained mmdet config of an architecture: model, data, schedule.

    Plain mmdet and mmengine build and train it, and scale its learning rate as we do; ``custom_imports`` registers the
    three modules. For what the file does not say see
    :func:`~hitdet_nni.training.runner_config.not_in_a_plain_config`.
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
        "work_dir": "work_dir",
        "model": detector_config(architecture.skeleton, operators, architecture.num_classes),
        **training_config(settings, data),
    }
    config["default_hooks"] = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1}}
    if settings.lr_batch_size is not None:
        config["auto_scale_lr"] = {"enable": True, "base_batch_size": settings.lr_batch_size}
    title = f"# mmdet config of the architecture {architecture.name!r}, written by hitdet-nni."
    return (
        "\n".join([title, *(f"{key} = {pprint.pformat(value, sort_dicts=False)}" for key, value in config.items())])
        + "\n"
    )
