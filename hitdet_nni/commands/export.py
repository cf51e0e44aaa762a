"""``export``: what a run found, as an architecture JSON or, with its trained weights, as a model file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_file
from hitdet_nni.deployment import FILE_PRECISIONS, FORMATS
from hitdet_nni.deployment.suffixes import SUFFIXES, format_of, require_suffix
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    from hitdet_nni.config.architecture import Architecture
    from hitdet_nni.runs.run_directory import RunDirectory

HELP_ORDER = 60
HELP = "write a run's architecture, or a trained detector as a file that runs without this package"
EXAMPLE = "hitdet-nni export runs/mine-retrained --format onnx --out mine.onnx"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument("source", help="run directory; with weights also an architecture JSON, or a shipped one's name")
    add_file(parser, "file to write")
    parser.add_argument(
        "--format",
        choices=list(SUFFIXES),
        help="architecture JSON of a run, or model file of a trained detector (default: what the name of --out ends "
        f"in: {', '.join(SUFFIXES.values())})",
    )
    parser.add_argument(
        "--epoch",
        type=int,
        help="architecture: decode the alphas after this epoch (from 0); a search by samples decided otherwise",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="model file: weights of a retraining (default: those of the run)"
    )
    parser.add_argument(
        "--raw-heads", action="store_true", help="model file: what the heads predict, before decoding and suppression"
    )
    parser.add_argument(
        "--precision",
        choices=FILE_PRECISIONS,
        default="fp32",
        help="model file: what its layers compute in, the last ones left out; int8: not torch's (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration",
        type=int,
        default=128,
        metavar="N",
        help="int8: training images by which the ranges of values are found (default: %(default)s)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="model file: print its mAP on the validation images, and that of the run"
    )
    parser.add_argument("--config", help="config of these images (default: the run's)")


def run(options: Namespace) -> None:
    """Write an architecture JSON, or a model file.

    Raises:
        InputError: If an option is not the format's, the file's name does not suit it, or the file exists already.
    """
    from hitdet_nni.commands.shared.console import echo
    from hitdet_nni.commands.shared.stages import run_export

    kind = options.format or format_of(options.out)
    if kind == "architecture":
        given = {
            "--weights": options.weights,
            "--raw-heads": options.raw_heads,
            "--precision": options.precision != "fp32",
            "--verify": options.verify,
            "--config": options.config,
        }
        _refuse(kind, given, f"--format {', '.join(FORMATS)}")
        require_suffix(options.out, kind)
        _export_architecture(options)
        return
    _refuse(kind, {"--epoch": options.epoch}, "--format architecture")
    if options.config is not None and not options.verify and options.precision != "int8":
        raise InputError("needs no images", key="--config", allowed="with --verify, or --precision int8")
    found = run_export(
        options.source,
        options.weights,
        options.out,
        kind,
        options.config,
        force=options.force,
        raw_heads=options.raw_heads,
        precision=options.precision,
        calibration=options.calibration,
        verify=options.verify,
    )
    echo(str(options.out))
    if found is not None:
        echo(found.sentence())


def _refuse(kind: str, given: dict[str, object], needed: str) -> None:
    """Refuse options that have no meaning for the format.

    Raises:
        InputError: Naming the first that is given.
    """
    for key, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"has no meaning with --format {kind}", key=key, allowed=f"with {needed}")


def _export_architecture(options: Namespace) -> None:
    """Write a run's architecture, or the one that its alphas showed after an epoch."""
    from hitdet_nni.commands.shared.console import echo, refuse_existing
    from hitdet_nni.config.architecture import load_architecture, save_architecture
    from hitdet_nni.runs.run_directory import find_run

    found = find_run(options.source)
    refuse_existing(options.out, options.force)
    if options.epoch is None:
        architecture = load_architecture(found.require(found.architecture, "search"))
    else:
        architecture = _decode_epoch(found, options.epoch)
    save_architecture(architecture, options.out)
    echo(str(options.out))


def _decode_epoch(found: RunDirectory, epoch: int) -> Architecture:
    """Decide the operators by the alphas after an epoch, as a search by probability decides them after its last.

    Raises:
        InputError: If the run has no such epoch, or a file of it is damaged.
    """
    from hitdet_nni.config.search_space import layer_candidates, load_search_space
    from hitdet_nni.config.settings import load_settings
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.nas.budget import search_budget
    from hitdet_nni.nas.checks import budget_cost_model
    from hitdet_nni.nas.decode import decode, log_probabilities
    from hitdet_nni.nas.provenance import SEARCH, describe_architecture, kept_budget
    from hitdet_nni.runs.tables import read_alphas

    epochs = read_alphas(found.alphas)
    if epoch not in epochs:
        allowed = f"{min(epochs)} to {max(epochs)}" if epochs else "an epoch of the search, once one has ended"
        raise InputError(f"no epoch {epoch}", source=found.alphas, key="--epoch", allowed=allowed)
    layers = epochs[epoch]
    settings = load_settings(found.config)
    space = load_search_space(found.sub_spaces)
    candidates = layer_candidates(settings.skeleton, space)
    alphas = {label: {name: one.alpha for name, one in row.items()} for label, row in layers.items()}
    _check_alphas(alphas, candidates, epoch, found.alphas)
    classes = open_data(settings.data, settings.seed).classes
    kept = kept_budget(found, settings)
    model = budget_cost_model(settings.skeleton, len(classes), kept)
    budget = search_budget(model, space, kept)
    sample = decode(log_probabilities(alphas), candidates, budget)
    name = f"{found.path.name}-epoch{epoch}"
    return describe_architecture(name, sample, space, settings, classes, source=SEARCH, latency=model.latency)


def _check_alphas(
    alphas: Mapping[str, Mapping[str, float]], candidates: Mapping[str, Sequence[str]], epoch: int, file: Path
) -> None:
    """Refuse alphas that are not those of the candidates of the layers that have several.

    Raises:
        InputError: Naming the layer, or the operator and its layer.
    """
    searched = {label: names for label, names in candidates.items() if len(names) > 1}
    for label in alphas:
        if label not in searched:
            raise InputError(f"epoch {epoch} has alphas of {label}", source=file, allowed="layers of the run")
    for label, names in searched.items():
        found = alphas.get(label, {})
        missing = [name for name in names if name not in found]
        if missing:
            raise InputError(f"epoch {epoch} has no alpha of {missing[0]} in {label}", source=file)
        unknown = [name for name in found if name not in names]
        if unknown:
            raise InputError(f"{unknown[0]} was not searched in {label}", source=file, allowed=names)
