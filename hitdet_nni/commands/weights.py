"""``retrain``, ``evaluate`` and ``export-config``: the weights of a decided architecture."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from hitdet_nni.commands.console import refuse_existing, say, settings_of
from hitdet_nni.commands.work import at_work, load_libraries
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.errors import InputError
from hitdet_nni.io import write_text
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.search.checks import check_classes, check_initial_weights
from hitdet_nni.search.provenance import keep_architecture, transferred


def retrain_command(options: Namespace) -> None:
    """``retrain``: train, from new weights or the supernet's, evaluate, write metrics.json."""
    settings = settings_of(options)
    architecture, supernet = _start(options)
    check_initial_weights(settings, supernet)
    run_directory = RunDirectory(options.out)
    with at_work(options, f"{options.config}, {architecture.name}") as view:
        pictures = open_data(settings.data, settings.seed, architecture.skeleton.input_size)
        if settings.retrain.transfer:
            architecture = transferred(architecture, settings, pictures.classes)
        check_classes(architecture, pictures)
        load_libraries(view, settings)
        from hitdet_nni.pipeline import train_found
        from hitdet_nni.training.retrain import check_start

        check_start(settings, supernet)
        run_directory.open(settings, force=options.force, resume=options.resume)
        if distributed.is_main():
            keep_architecture(run_directory, architecture)
        with run_directory.timed("retrain"):
            result = train_found(
                run_directory, architecture, settings, pictures, resume=options.resume, inherit=supernet
            )
    say(json.dumps(result, indent=2) if options.json else str(run_directory.metrics))


def _start(options: Namespace) -> tuple[Architecture, Path | None]:
    """What to train, and the weights file of the supernet that it starts from, if any."""
    if options.inherit is None:
        if options.architecture is None:
            raise InputError("is missing", key="--architecture", allowed="an architecture, or --inherit RUN")
        return load_architecture(options.architecture), None
    source = find_run(options.inherit)
    architecture = load_architecture(options.architecture or source.architecture)
    space = load_search_space(source.sub_spaces)
    for layer in architecture.skeleton.searched_layers():
        operator, searched = architecture.sample[layer.label], space[layer.component]
        if operator not in searched:
            raise InputError(f"{layer.label} is {operator}, not searched", source=source.sub_spaces, allowed=searched)
    return architecture, source.supernet


def evaluate_command(options: Namespace) -> None:
    """``evaluate``: COCO metrics of given weights.

    Raises:
        InputError: If there are no such weights, or the data have other classes than the architecture.
    """
    settings = settings_of(options)
    architecture = load_architecture(options.architecture)
    pictures = open_data(settings.data, settings.seed, architecture.skeleton.input_size)
    check_classes(architecture, pictures)
    if not options.weights.is_file():
        raise InputError("no such file", source=options.weights, key="--weights")
    prepare_process(settings.threads)
    from hitdet_nni.training.retrain import evaluate

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
    pictures = open_data(settings.data, settings.seed, architecture.skeleton.input_size)
    prepare_process(settings.threads)
    from hitdet_nni.training.retrain import export_config

    write_text(options.out, export_config(architecture, settings, pictures))
    say(str(options.out))
