"""``train-baseline``: an mmdet config trained by the protocol of ``retrain``."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from typing import Any

from hitdet_nni.commands.console import say, settings_of
from hitdet_nni.commands.work import at_work, load_libraries
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.profile import find_config
from hitdet_nni.data.sources import DetectionData, open_data
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.search.checks import check_initial_weights

logger = logging.getLogger(__name__)


def train_baseline_command(options: Namespace) -> None:
    """``train-baseline``: train, evaluate, write ``metrics.json``.

    Raises:
        InputError: If the config cannot be trained, or the run directory cannot be taken.
        NonFiniteLossError: If the training diverges.
    """
    settings = settings_of(options)
    find_config(options.baseline)
    check_initial_weights(settings, None)
    run = RunDirectory(options.out)
    with at_work(options, f"{options.config}, {options.baseline}") as view:
        pictures = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        load_libraries(view, settings)
        from hitdet_nni.training.baseline import model_config
        from hitdet_nni.training.retrain import check_start

        check_start(settings, None)
        model_config(options.baseline, len(pictures.classes), new_weights=True)
        run.open(settings, force=options.force, resume=options.resume)
        _keep_config(run, options.baseline)
        if not distributed.from_main(run.metrics.exists()):
            _train(run, options, settings, pictures)
    say(json.dumps(read_json(run.metrics), indent=2) if options.json else str(run.metrics))


def _train(run: RunDirectory, options: Namespace, settings: Settings, pictures: DetectionData) -> None:
    """Train, evaluate, write ``metrics.json``."""
    from hitdet_nni.engine.checkpoints import CheckpointFolder
    from hitdet_nni.training.baseline import train_baseline

    checkpoints = CheckpointFolder(run.checkpoints("retrain"), settings.checkpoint.keep)
    with run.timed("retrain"):
        trained = train_baseline(
            options.baseline, settings, pictures, run.retrain, checkpoints=checkpoints, resume=options.resume
        )
    if distributed.is_main():
        result = {
            "baseline": options.baseline,
            "mAP": trained.metrics["mAP"],
            **_cost(options.baseline, len(pictures.classes), settings),
            "metrics": trained.metrics,
            "metrics_before_training": trained.before,
            "weights": str(trained.weights.relative_to(run.path)),
        }
        write_json(run.metrics, result)
        checkpoints.clear()
    distributed.barrier()


def _cost(baseline: str, num_classes: int, settings: Settings) -> dict[str, Any]:
    """What ``metrics.json`` says of the cost; without figures, and with a line, where it cannot be counted."""
    from hitdet_nni.training.baseline import baseline_cost

    shape = settings.skeleton.input_size
    try:
        total, proposals = baseline_cost(baseline, num_classes, shape)
    except InputError as error:
        logger.warning("its cost is not counted: %s", error)
        return {"params_m": None, "gflops": None, "proposals": None, "shape": list(shape)}
    millions, billions = total.params / 1e6, total.flops / 1e9
    return {"params_m": millions, "gflops": billions, "proposals": proposals, "shape": list(shape)}


def _keep_config(run: RunDirectory, name: str) -> None:
    """Write ``baseline.json``: the name, and the config with all that it is based on; it must be that of a resumed run.

    Raises:
        InputError: If the run is of another config.
    """
    from hitdet_nni.cost.mmdet_config import load_config

    file = run.baseline
    content = {"baseline": name, "config": load_config(name).pretty_text}
    if distributed.is_main():
        if file.exists() and read_json(file) != content:
            raise InputError("the run there is of another config", source=file, allowed="the same config, or --force")
        write_json(file, content)
    distributed.barrier()
