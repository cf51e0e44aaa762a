"""mmengine's runner config of an evaluation as COCO does it, and the metrics that come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dataset import DefaultSampler

from hitdet_nni.config.settings import DataSettings, Settings
from hitdet_nni.data.memory import kept
from hitdet_nni.data.pipeline import build_dataset, dataset_config, loader
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.training.coco_metric import STATS, ExactCocoMetric

METRICS = STATS
"""COCO's average precisions, by the names that mmdet gives them."""

EXPORTED_WORKERS = 2
"""Loader processes of a config that may be used on any machine: mmdet's own number."""


def coco_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the average precisions in [0, 1] by their bare names; -1 where a size has no boxes.

    mmdet gives none where nothing at all was detected, as by an untrained one-stage detector: they are zero then.
    """
    found = {name: float(metrics[f"coco/bbox_{name}"]) for name in METRICS if f"coco/bbox_{name}" in metrics}
    return found or dict.fromkeys(METRICS, 0.0)


def loader_config(data: DataSettings) -> dict[str, Any]:
    """Return the config of a loader, all but its pictures and their order."""
    workers = EXPORTED_WORKERS if data.workers is None else data.workers
    return {
        "batch_size": data.batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": {"type": "pseudo_collate"},
    }


def exact(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a runner config whose metrics are not rounded, as mmdet's are."""
    return {**config, "val_evaluator": {**config["val_evaluator"], "type": ExactCocoMetric}}


def evaluation_config(settings: Settings, data: DetectionData) -> dict[str, Any]:
    """Return the config of an evaluation on the validation pictures with plain mmdet, all but the model."""
    evaluator = {"type": "CocoMetric", "ann_file": str(data.val.ann), "metric": "bbox", "_scope_": "mmdet"}
    if distributed.processes() > 1:
        # Through the group, on CPU too; mmengine's "cpu" means pickled files in the working directory.
        evaluator["collect_device"] = "gpu"
    return {
        "val_dataloader": {
            **loader_config(settings.data),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "drop_last": False,
            "dataset": dataset_config(data.val, settings.skeleton, training=False),
        },
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": evaluator,
    }


def evaluation_loader(settings: Settings, data: DetectionData) -> Any:
    """Build the loader of the validation pictures, each decoded once, and named where it cannot be read.

    Args:
        settings: Gives the input size, and the ``data`` section with its loader processes settled.
        data: The pictures.

    Returns:
        A ``DataLoader`` of mmdet's batches in the order of the pictures.
    """
    pictures = kept(build_dataset(data.val, settings.skeleton, training=False), settings.data)
    return loader(pictures, settings.data, DefaultSampler(pictures, shuffle=False, seed=settings.seed))
