"""``train-baseline``: an mmdet config trained by the protocol of ``retrain``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from hitdet_nni.commands.shared.options import add_json, add_training

if TYPE_CHECKING:
    from hitdet_nni.config.settings import Settings
    from hitdet_nni.data.sources import DetectionData
    from hitdet_nni.runs.run_directory import RunDirectory

HELP_ORDER = 100
HELP = "train a baseline, or any mmdet config, as `retrain` trains a found detector, and evaluate it"
EXAMPLE = (
    "hitdet-nni train-baseline fpn_r50_2fc --config coco2017 --set data.root=/data/coco "
    "--set retrain.pretrained=resnet50.pth --out runs/fpn"
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``train-baseline``."""
    add_training(parser)
    parser.add_argument("baseline", help="mmdet config (.py), or a shipped baseline's name")
    add_json(parser)


def run(options: Namespace) -> None:
    """Train, evaluate, and write ``metrics.json``.

    Raises:
        InputError: If the config cannot be trained, or the run directory cannot be taken.
        NonFiniteLossError: If the training diverges.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, settings_of
    from hitdet_nni.commands.shared.outcome import training_outcome
    from hitdet_nni.commands.shared.work import at_work, libraries_loading
    from hitdet_nni.cost.profile import find_config
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine import distributed
    from hitdet_nni.io import read_json
    from hitdet_nni.loggers.packages import require_package
    from hitdet_nni.nas.checks import check_initial_weights
    from hitdet_nni.runs.run_directory import RunDirectory

    settings = settings_of(options)
    find_config(options.baseline)
    check_initial_weights(settings, None)
    require_package(settings.logger)
    directory = RunDirectory(options.out)
    with at_work(options, f"{options.config}, {options.baseline}") as view:
        settings, images = open_images(settings)
        directory.check(settings, force=options.force, resume=options.resume)
        with libraries_loading(view, settings):
            from hitdet_nni.nas.outlook import tell_long_warmup
            from hitdet_nni.training.baseline import check_queries, model_config
            from hitdet_nni.training.retrain import check_start

        check_start(settings, None)
        model = model_config(options.baseline, len(images.classes), new_weights=True)
        check_queries(model, settings.skeleton.input_size, options.baseline)
        directory.open(settings, force=options.force, resume=options.resume)
        _keep_config(directory, options.baseline)
        if not distributed.broadcast_object(directory.metrics.exists()):
            tell_long_warmup(settings, images)
            _train(directory, options, settings, images)
    result = read_json(directory.metrics)
    for line in [json_text(result)] if options.json else training_outcome(directory, result):
        echo(line)


def _train(run: RunDirectory, options: Namespace, settings: Settings, images: DetectionData) -> None:
    """Train, evaluate, write ``metrics.json``."""
    from hitdet_nni.engine import distributed
    from hitdet_nni.engine.checkpoints import CheckpointFolder
    from hitdet_nni.io import write_json
    from hitdet_nni.loggers.following import followed
    from hitdet_nni.runs.result import result_content
    from hitdet_nni.training.baseline import train_baseline

    checkpoints = CheckpointFolder(run.checkpoints("retrain"), settings.checkpoint.keep)
    with followed(run, settings):
        with run.timed("retrain"):
            trained = train_baseline(
                options.baseline, settings, images, run.retrain, checkpoints=checkpoints, resume=options.resume
            )
        if distributed.is_main():
            cost = _cost(options.baseline, len(images.classes), settings)
            weights = trained.weights.relative_to(run.path)
            result = result_content("baseline", options.baseline, cost, trained.metrics, trained.before, weights)
            write_json(run.metrics, result)
            checkpoints.clear()
    distributed.barrier()


def _cost(baseline: str, num_classes: int, settings: Settings) -> dict[str, Any]:
    """Return what ``metrics.json`` says of the cost; where it cannot be counted no figures, and log a line."""
    import logging

    from hitdet_nni.errors import InputError
    from hitdet_nni.training.baseline import baseline_cost

    shape = settings.skeleton.input_size
    try:
        total, proposals, shape = baseline_cost(baseline, num_classes, shape)
    except InputError as error:
        logging.getLogger(__name__).warning("its cost is not counted: %s", error)
        return {"params_m": None, "gflops": None, "proposals": None, "shape": list(shape)}
    millions, billions = total.params_m, total.gflops
    return {"params_m": millions, "gflops": billions, "proposals": proposals, "shape": list(shape)}


def _keep_config(run: RunDirectory, name: str) -> None:
    """Write ``baseline.json``: the name, and the config with all that it is based on; it must be that of a resumed run.

    Raises:
        InputError: If the run is of another config.
    """
    from hitdet_nni.cost.mmdet_config import load_config
    from hitdet_nni.engine import distributed
    from hitdet_nni.errors import InputError
    from hitdet_nni.io import read_json, write_json

    file = run.baseline
    content = {"baseline": name, "config": load_config(name).pretty_text}
    if distributed.is_main():
        if file.exists() and read_json(file) != content:
            raise InputError("the run there is of another config", source=file, allowed="the same config, or --force")
        write_json(file, content)
    distributed.barrier()
