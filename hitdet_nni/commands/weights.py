"""``retrain``, ``evaluate`` and ``export-config``: the weights of a decided architecture."""

from __future__ import annotations

import json
from argparse import Namespace

from hitdet_nni.architecture import load_architecture, save_architecture
from hitdet_nni.commands.console import refuse_existing, say, settings_of
from hitdet_nni.data.pipeline import open_data
from hitdet_nni.files import write_text
from hitdet_nni.procedure import train_found
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.train import evaluate, export_config


def retrain_command(options: Namespace) -> None:
    """``retrain``: train from scratch, evaluate, write metrics.json."""
    settings = settings_of(options)
    architecture = load_architecture(options.architecture)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    run_directory.open(settings, force=options.force, resume=options.resume)
    save_architecture(architecture, run_directory.architecture)

    def say_metrics(epoch: int, metrics: dict[str, float]) -> None:
        if not options.json:
            say(f"epoch {epoch}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    with run_directory.timed("retrain"):
        result = train_found(run_directory, architecture, settings, pictures, say_metrics)
    say(json.dumps(result, indent=2) if options.json else str(run_directory.metrics))


def evaluate_command(options: Namespace) -> None:
    """``evaluate``: COCO metrics of given weights."""
    settings = settings_of(options)
    architecture = load_architecture(options.architecture)
    pictures = open_data(settings.data, settings.seed)
    metrics = evaluate(architecture, options.weights, settings, pictures)
    if options.json:
        say(json.dumps(metrics, indent=2))
    else:
        say("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def export_config_command(options: Namespace) -> None:
    """``export-config``: a self-contained mmdet config."""
    settings = settings_of(options)
    architecture = load_architecture(options.architecture)
    refuse_existing(options.out, options.force)
    write_text(options.out, export_config(architecture, settings, open_data(settings.data, settings.seed)))
    say(str(options.out))
