"""``train-baseline``: an mmdet config trained by the protocol of ``retrain``."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from hitdet_nni.commands.console import say, settings_of
from hitdet_nni.cost_tables.mmdet_config import load_config
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.errors import InputError
from hitdet_nni.files import read_json, write_json
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.search.layer_cost import Size
from hitdet_nni.training.baseline import baseline_cost, model_config, train_baseline
from hitdet_nni.training.retrain import check_start


def train_baseline_command(options: Namespace) -> None:
    """``train-baseline``: train, evaluate, write ``metrics.json``.

    Raises:
        InputError: If the config cannot be trained, or the run directory cannot be taken.
        NonFiniteLossError: If the training diverges.
    """
    settings = settings_of(options)
    check_start(settings, None)
    pictures = open_data(settings.data, settings.seed)
    model_config(options.baseline, len(pictures.classes), new_weights=True)
    run = RunDirectory(options.out)
    run.open(settings, force=options.force, resume=options.resume)
    _keep_config(run, options.baseline)

    def say_metrics(epoch: int, metrics: dict[str, float]) -> None:
        if not options.json:
            say(f"epoch {epoch}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    if not distributed.from_main(run.metrics.exists()):
        checkpoints = CheckpointFolder(run.checkpoints("retrain"), settings.checkpoint.keep)
        with run.timed("retrain"):
            trained = train_baseline(
                options.baseline,
                settings,
                pictures,
                run.retrain,
                say_metrics,
                checkpoints=checkpoints,
                resume=options.resume,
            )
        if distributed.is_main():
            result = {
                "baseline": options.baseline,
                "mAP": trained.metrics["mAP"],
                **_cost(options, len(pictures.classes), settings.skeleton.input_size),
                "metrics": trained.metrics,
                "metrics_before_training": trained.before,
                "weights": str(trained.weights.relative_to(run.path)),
            }
            write_json(run.metrics, result)
            checkpoints.clear()
        distributed.barrier()
    say(json.dumps(read_json(run.metrics), indent=2) if options.json else str(run.metrics))


def _cost(options: Namespace, num_classes: int, shape: Size) -> dict[str, Any]:
    """What ``metrics.json`` says of the cost; without figures, and with a line, where it cannot be counted."""
    try:
        total, proposals = baseline_cost(options.baseline, num_classes, shape)
    except InputError as error:
        if not options.json:
            say(f"its cost is not counted: {error}")
        return {"params_m": None, "gflops": None, "proposals": None, "shape": list(shape)}
    millions, billions = total.params / 1e6, total.flops / 1e9
    return {"params_m": millions, "gflops": billions, "proposals": proposals, "shape": list(shape)}


def _keep_config(run: RunDirectory, name: str) -> None:
    """Write ``baseline.json``: the name, and the config with all that it is based on; it must be that of a resumed run.

    Raises:
        InputError: If the run is of another config.
    """
    file = run.baseline
    content = {"baseline": name, "config": load_config(name).pretty_text}
    if distributed.is_main():
        if file.exists() and read_json(file) != content:
            raise InputError("the run there is of another config", source=file, allowed="the same config, or --force")
        write_json(file, content)
    distributed.barrier()
