"""The last stage: training an architecture anew, and what it costs and finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.io import read_json, write_json
from hitdet_nni.nas.outlook import tell_long_warmup
from hitdet_nni.pipeline.stage import note_images
from hitdet_nni.runs.result import result_content
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.retrain import Retrained, retrain
from hitdet_nni.training.runner_config import STAGE


def retrain_architecture(
    run: RunDirectory,
    architecture: Architecture,
    settings: Settings,
    data: DetectionData,
    on_evaluation: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    *,
    resume: bool = False,
    inherit: Path | None = None,
) -> dict[str, Any]:
    """Retrain an architecture and write ``metrics.json``.

    Args:
        run: Where it is written.
        architecture: What to train.
        settings: All settings.
        data: The images.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation.
        resume: Go on from the newest checkpoint; do nothing where ``metrics.json`` is there already.
        inherit: Weights of the supernet to start from, instead of new ones.

    Returns:
        What the file holds: COCO metrics before and after training, parameters and FLOPs.

    Source:
        Section 4.2.
    """
    note_images(run, data)
    checkpoints = CheckpointFolder(run.checkpoints(STAGE), settings.checkpoint.keep)
    if not (resume and distributed.broadcast_object(run.metrics.exists())):
        tell_long_warmup(settings, data)
        outcome = retrain(
            architecture,
            settings,
            data,
            run.retrain,
            on_evaluation,
            resume=resume,
            inherit=inherit,
            checkpoints=checkpoints,
        )
        if distributed.is_main():
            write_json(run.metrics, _describe_retrained(run, architecture, outcome))
    if distributed.is_main():
        checkpoints.clear()
    distributed.barrier()
    result: dict[str, Any] = read_json(run.metrics)
    return result


def _describe_retrained(run: RunDirectory, architecture: Architecture, outcome: Retrained) -> dict[str, Any]:
    skeleton = architecture.skeleton
    cost = CostModel(skeleton, architecture.num_classes).architecture(architecture.sample)["total"]
    return result_content(
        "architecture",
        architecture.name,
        {"params_m": cost.params_m, "gflops": cost.gflops, "shape": list(skeleton.padded_size)},
        outcome.metrics,
        outcome.before,
        outcome.weights.relative_to(run.path),
    )
