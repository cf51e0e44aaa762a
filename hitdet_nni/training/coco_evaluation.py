"""mmengine's runner config of an evaluation as COCO does it, and the metrics that come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.loaders import loader_config
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.training.coco_metric import STATS, ExactCocoMetric

METRICS = STATS
"""COCO's average precisions, by the names that mmdet gives them."""


def coco_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the average precisions in [0, 1] by their bare names; -1 where a size has no boxes."""
    return {name: float(metrics[f"coco/bbox_{name}"]) for name in METRICS if f"coco/bbox_{name}" in metrics}


def exact(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a runner config whose metrics are not rounded, as mmdet's are."""
    return {**config, "val_evaluator": {**config["val_evaluator"], "type": ExactCocoMetric}}


def evaluation_config(settings: Settings, data: DetectionData) -> dict[str, Any]:
    """Return the config of an evaluation on the validation images with plain mmdet, all but the model."""
    evaluator = {"type": "CocoMetric", "ann_file": str(data.val.ann), "metric": "bbox", "_scope_": "mmdet"}
    if distributed.world_size() > 1:
        # Through the group, on CPU too; mmengine's "cpu" means pickled files in the working directory.
        evaluator["collect_device"] = "gpu"
    return {
        "val_dataloader": loader_config(data.val, settings.data, settings.skeleton, training=False),
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": evaluator,
    }
