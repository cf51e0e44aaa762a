"""mmengine's runner config of a retraining: the plain one that is exported, and the exact one that we train with."""

from __future__ import annotations

from typing import Any

from hitdet_nni.config.settings import RetrainSettings, Settings, describe_lr, scaled_lr
from hitdet_nni.data.loaders import loader_config, retraining_loaders
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.engine.moving_average import average_arguments
from hitdet_nni.engine.precision import Precision
from hitdet_nni.training.coco_evaluation import coco_metrics, evaluation_config, exact
from hitdet_nni.training.step import RetrainStep

STAGE = "retrain"


def learning_rate(settings: Settings) -> tuple[float, str]:
    """Return a retraining's learning rate for this number of processes, and a line that says where it is from.

    Source:
        Section 4.2, 0.04 for 8 x 4 images; Goyal et al., Accurate, Large Minibatch SGD, 2017, for the scaling.
    """
    scaling = (settings.retrain.lr, settings.data.batch_size, distributed.world_size(), settings.lr_batch_size)
    return scaled_lr(*scaling), describe_lr(*scaling)


def training_config(settings: Settings, data: DetectionData) -> dict[str, Any]:
    """Build the config of a retraining with plain mmdet and mmengine, all but the model.

    Source:
        Section 4.2: SGD, lr divided by 10 at the milestones; linear warm-up and clipping are the released
        configuration's.
    """
    retrain = settings.retrain
    return {
        "train_dataloader": loader_config(data.train, settings.data, settings.skeleton, training=True),
        "train_cfg": {
            "type": "EpochBasedTrainLoop",
            "max_epochs": retrain.epochs,
            "val_interval": retrain.val_interval,
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": _optimizer(retrain),
            "clip_grad": None if retrain.grad_clip is None else {"max_norm": retrain.grad_clip},
        },
        "param_scheduler": _schedule(retrain),
        "default_hooks": {
            "checkpoint": None,  # mmengine's checkpoints hold pickled objects; ours are written by the train loop
            "logger": {"type": "LoggerHook", "interval": 50},
        },
        "randomness": {"seed": settings.seed},
        **evaluation_config(settings, data),
        **({"custom_hooks": hooks} if (hooks := _hooks(retrain)) else {}),
    }


def resumable_config(
    settings: Settings,
    data: DetectionData,
    precision: Precision,
    checkpoints: CheckpointFolder,
    start: str,
    until: int | None = None,
) -> dict[str, Any]:
    """Make :func:`training_config` exact: resumable, by several processes, in a chosen precision.

    Args:
        settings: All settings.
        data: The images.
        precision: What losses and gradients are computed in.
        checkpoints: Where the state is kept.
        start: Says what the initial weights are; a checkpoint that started from others is refused.
        until: Epochs after which the training pauses; ``None`` for all.
    """
    plain = exact(training_config(settings, data))
    plain.pop("custom_hooks", None)  # the loop does their work, so that it goes on exactly
    retrain = settings.retrain
    train_loader, val_loader = retraining_loaders(data, settings.data, settings.skeleton, settings.seed, retrain.epochs)
    optimizer = {**plain["optim_wrapper"]["optimizer"], "lr": learning_rate(settings)[0], "foreach": True}
    return {
        **plain,
        # Loaders rather than configs: ours draw no number from the training's random number generator.
        "train_dataloader": train_loader,
        "val_dataloader": val_loader,
        "train_cfg": {
            **plain["train_cfg"],
            "type": ResumableTrainLoop,
            "stage": STAGE,
            "metrics": coco_metrics,
            "checkpoints": checkpoints,
            "every_steps": settings.checkpoint.every_steps,
            "start": start,
            "images": data.train.identity,
            "average": retrain.ema,
            "patience": retrain.patience,
            "until": until,
        },
        "optim_wrapper": {
            "type": RetrainStep,
            "optimizer": optimizer,
            "precision": precision,
            "max_norm": retrain.grad_clip,
        },
        # Losses that are logged are means within an epoch, as those that are told.
        "log_processor": {"window_size": min(10, train_loader.sampler.steps), "by_epoch": True},
        # Processes sample RoIs of different images, so each has random numbers of its own.
        "randomness": {"seed": (settings.seed + distributed.rank()) % 2**32},
    }


def not_in_a_plain_config(settings: Settings) -> list[str]:
    """Return the settings of a retraining that :func:`training_config` does not express, e.g. ``precision: bf16``."""
    usual: dict[str, tuple[object, object]] = {
        "batch_norm": (settings.batch_norm, "local"),
        "precision": (settings.precision, "fp32"),
        "retrain.pretrained": (settings.retrain.pretrained, None),
    }
    return [f"{key}: {value}" for key, (value, plain) in usual.items() if value != plain]


def _optimizer(retrain: RetrainSettings) -> dict[str, Any]:
    common = {"lr": retrain.lr, "weight_decay": retrain.weight_decay}
    kinds: dict[str, dict[str, Any]] = {
        "sgd": {"type": "SGD", "momentum": retrain.momentum},
        "adamw": {"type": "AdamW"},
    }
    return {**kinds[retrain.optimizer], **common}


def _hooks(retrain: RetrainSettings) -> list[dict[str, Any]]:
    """Return mmengine's hooks that do in a plain training what our loop does by itself."""
    hooks: list[dict[str, Any]] = []
    if retrain.ema is not None:
        arguments = average_arguments(retrain.ema)
        hooks.append({"type": "EMAHook", "ema_type": "ExpMomentumEMA", "priority": 49, **arguments})
    if retrain.patience is not None:
        monitor = {"monitor": "coco/bbox_mAP", "rule": "greater", "min_delta": 0.0}
        hooks.append({"type": "EarlyStoppingHook", "patience": retrain.patience, **monitor})
    return hooks


def _schedule(retrain: RetrainSettings) -> list[dict[str, Any]]:
    steps: dict[str, Any] = {
        "type": "MultiStepLR",
        "by_epoch": True,
        "begin": 0,
        "end": retrain.epochs,
        "milestones": list(retrain.milestones),
        "gamma": 0.1,
    }
    if retrain.schedule == "cosine":
        steps = {
            "type": "CosineAnnealingLR",
            "by_epoch": True,
            "convert_to_iter_based": True,
            "begin": 0,
            "end": retrain.epochs,
            "T_max": retrain.epochs,
            "eta_min": 0.0,
        }
    if not retrain.warmup_iterations:
        return [steps]
    warmup = {
        "type": "LinearLR",
        "start_factor": 0.1,
        "by_epoch": False,
        "begin": 0,
        "end": retrain.warmup_iterations + 1,  # the first iteration at the full rate
    }
    return [warmup, steps]
