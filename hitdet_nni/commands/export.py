"""``export``: what a run found, as an architecture JSON or, with its trained weights, as a model file."""

from __future__ import annotations

import csv
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from hitdet_nni.commands.console import refuse_existing, say
from hitdet_nni.config.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.config.search_space import layer_candidates, load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import open_data
from hitdet_nni.deployment import FORMATS
from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE, read_text, whole_lines
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.search.provenance import describe_architecture


def export_command(options: Namespace) -> None:
    """``export``: an architecture JSON, or a model file.

    Raises:
        InputError: If an option is not the format's, the file's name does not suit it, or the file exists already.
    """
    if options.format == "architecture":
        _refuse(
            options, {"--weights": options.weights, "--raw-heads": options.raw_heads}, f"--format {', '.join(FORMATS)}"
        )
        _export_architecture(options)
        return
    _refuse(options, {"--epoch": options.epoch}, "--format architecture")
    if options.format == "torch-export" and options.out.suffix != ".pt2":
        raise InputError(f"got {options.out.name}", key="--out", allowed="a name that ends in .pt2, as torch asks for")
    architecture, weights = _trained(options)
    refuse_existing(options.out, options.force)
    if not weights.is_file():
        raise InputError("no such file", source=weights, allowed=f"a file such as {WEIGHTS_FILE} of a retraining")
    from hitdet_nni.deployment.formats import export_model

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


def _export_architecture(options: Namespace) -> None:
    """Write a run's architecture, or the one that its alphas showed after an epoch."""
    found = find_run(options.source)
    refuse_existing(options.out, options.force)
    if options.epoch is None:
        architecture = load_architecture(found.architecture)
    else:
        architecture = _decode_epoch(found, options.epoch)
    save_architecture(architecture, options.out)
    say(str(options.out))


def _decode_epoch(found: RunDirectory, epoch: int) -> Architecture:
    """Decide the operators by the alphas after an epoch, as the search decided them after its last.

    Raises:
        InputError: If the run has no such epoch, or a file of it is damaged.
    """
    from hitdet_nni.search.budget import search_budget
    from hitdet_nni.search.decode import decode, log_probabilities

    rows = [row for row in csv.DictReader(whole_lines(read_text(found.alphas))) if row.get("epoch") == str(epoch)]
    if not rows:
        raise InputError(f"no epoch {epoch}", source=found.alphas, key="--epoch", allowed="an epoch of the search")
    settings = load_settings(found.config)
    space = load_search_space(found.sub_spaces)
    candidates = layer_candidates(settings.skeleton, space)
    alphas = _alphas(rows, candidates, epoch, found.alphas)
    classes = open_data(settings.data, settings.seed).classes
    budget = search_budget(CostModel(settings.skeleton, len(classes)), space, settings.search.budget)
    sample = decode(log_probabilities(alphas), candidates, budget)
    return describe_architecture(f"{found.path.name}-epoch{epoch}", sample, space, settings, classes)


def _alphas(
    rows: list[dict[str, str]], candidates: Mapping[str, Sequence[str]], epoch: int, file: Path
) -> dict[str, dict[str, float]]:
    """Read the alpha of each candidate of each layer that has several.

    Raises:
        InputError: If the rows are not those of the candidates, or an alpha is not finite.
    """
    alphas: dict[str, dict[str, float]] = {label: {} for label, names in candidates.items() if len(names) > 1}
    try:
        for row in rows:
            alphas[row["label"]][row["operator"]] = float(row["alpha"])
    except (KeyError, TypeError, ValueError):
        raise InputError("is not a table of alphas", source=file) from None
    for label, found in alphas.items():
        missing = [name for name in candidates[label] if name not in found]
        if missing:
            raise InputError(f"epoch {epoch} has no alpha of {missing[0]} in {label}", source=file)
        for name, alpha in found.items():
            if name not in candidates[label]:
                raise InputError(f"{name} was not searched in {label}", source=file, allowed=candidates[label])
            if not math.isfinite(alpha):
                raise InputError(f"the alpha of {name} in {label} is {alpha}", source=file, allowed="a finite number")
    return alphas
