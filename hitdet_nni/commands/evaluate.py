"""``evaluate``: the accuracy of a trained architecture."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_config, add_json

HELP_ORDER = 110
HELP = "evaluate a trained architecture as COCO does"
EXAMPLE = "hitdet-nni evaluate --architecture mine.json --weights weights.pth --config tiny"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    add_config(parser)
    parser.add_argument("--architecture", required=True, help="architecture JSON, run directory, or a shipped name")
    add_json(parser)
    parser.add_argument("--weights", type=Path, required=True, help="weights of a retraining")


def run(options: Namespace) -> None:
    """Print COCO metrics of given weights.

    Raises:
        InputError: If there are no such weights, or the data have other classes than the architecture.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, settings_of
    from hitdet_nni.commands.shared.trained import named_architecture
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.errors import InputError
    from hitdet_nni.nas.checks import check_classes
    from hitdet_nni.nas.provenance import tell_unused_skeleton

    settings = settings_of(options)
    architecture = named_architecture(options.architecture)
    images = open_data(settings.data, settings.seed, architecture.skeleton.input_size)
    check_classes(architecture, images)
    if not options.weights.is_file():
        raise InputError("no such file", source=options.weights, key="--weights")
    tell_unused_skeleton(architecture, settings)
    prepare_process(settings.threads)
    from hitdet_nni.training.retrain import evaluate

    metrics = evaluate(architecture, options.weights, settings, images)
    if options.json:
        echo(json_text(metrics))
    else:
        echo("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
