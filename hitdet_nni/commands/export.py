"""``export``: what a run found, as an architecture JSON or, with its trained weights, as a model file."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

from hitdet_nni.architecture import Architecture, load_architecture
from hitdet_nni.commands.console import refuse_existing, say
from hitdet_nni.deployment.formats import FORMATS, export_model
from hitdet_nni.engine.weights_file import WEIGHTS_FILE
from hitdet_nni.errors import InputError
from hitdet_nni.run_directory import find_run


def export_command(options: Namespace) -> None:
    """``export``: an architecture JSON, or a model file.

    Raises:
        InputError: If an option is not the format's, the file's name does not suit it, or the file exists already.
    """
    if options.format == "architecture":
        _refuse(
            options, {"--weights": options.weights, "--raw-heads": options.raw_heads}, f"--format {', '.join(FORMATS)}"
        )
        # Only a run's alphas need NNI and mmdet.
        importlib.import_module("hitdet_nni.commands.find").export(options)
        return
    _refuse(options, {"--epoch": options.epoch}, "--format architecture")
    if options.format == "torch-export" and options.out.suffix != ".pt2":
        raise InputError(f"got {options.out.name}", key="--out", allowed="a name that ends in .pt2, as torch asks for")
    architecture, weights = _trained(options)
    refuse_existing(options.out, options.force)
    export_model(architecture, weights, options.out, options.format, raw_heads=options.raw_heads)
    say(str(options.out))


def _refuse(options: Namespace, given: dict[str, object], needed: str) -> None:
    """Refuse options that have no meaning for the format.

    Raises:
        InputError: Naming the first that is given.
    """
    for key, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"has no meaning with --format {options.format}", key=key, allowed=f"with {needed}")


def _trained(options: Namespace) -> tuple[Architecture, Path]:
    """The architecture and the file of its weights: those of the run where none are named."""
    if not Path(options.source).is_dir():
        if options.weights is None:
            raise InputError("is missing", key="--weights", allowed=f"{WEIGHTS_FILE} of a retraining")
        return load_architecture(options.source), options.weights
    run = find_run(options.source)
    return load_architecture(run.architecture), options.weights or run.retrain / WEIGHTS_FILE
