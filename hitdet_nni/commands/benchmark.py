"""``benchmark``: accuracy and latency of an exported file, kept beside those of others."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.latency import add_rounds, check_rounds
from hitdet_nni.commands.shared.options import add_json, add_overrides

if TYPE_CHECKING:
    from hitdet_nni.config.settings import Settings
    from hitdet_nni.runs.benchmark import FileBenchmark
    from hitdet_nni.runs.run_directory import RunDirectory

HELP_ORDER = 77
HELP = "evaluate an exported file as COCO does, and time the same file: ONNX with onnxruntime, or OpenVINO's"
EXAMPLE = "hitdet-nni benchmark mine.onnx --run runs/mine-retrained"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``benchmark``."""
    parser.add_argument("file", type=Path, help="ONNX file of `export`, or the .xml file of OpenVINO")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run whose validation images it is evaluated on; keeps the outcome")
    source.add_argument("--config", help="config of the images instead")
    add_overrides(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write (default: benchmark.json of --run)")
    parser.add_argument(
        "--force", action="store_true", help="measure a file anew that is in the JSON; other files stay in it"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of one operation (default: %(default)s)")
    parser.add_argument("--images", type=int, default=20, help="images that are timed (default: %(default)s)")
    add_rounds(parser)
    add_json(parser)


def run(options: Namespace) -> None:
    """Evaluate and time the file, and write both.

    Raises:
        InputError: If an option is out of range, the file is no detector, or its classes are not those of the images.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, refuse_existing
    from hitdet_nni.commands.shared.measured import doubt
    from hitdet_nni.data.sources import open_validation
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.errors import InputError
    from hitdet_nni.io import WEIGHTS_FILE

    check_rounds(options)
    for name, value in (("--threads", options.threads), ("--images", options.images)):
        if value < 1:
            raise InputError(f"got {value}", source=name, allowed="1 or more")
    if not options.file.is_file():
        raise InputError("no such file", source=options.file, allowed="a file of hitdet-nni export")
    settings, out, origin = _settings(options)
    refuse_existing(out, force=True)
    _refuse_measured(options, out)
    validation = open_validation(settings.data, settings.seed)
    prepare_process(1)
    from hitdet_nni.deployment.suffixes import SUFFIXES
    from hitdet_nni.deployment.timing.runtimes import OnnxRunner
    from hitdet_nni.runs.benchmark import add_benchmark
    from hitdet_nni.training.file_benchmark import benchmark_file, require_weights

    if options.file.suffix != SUFFIXES["openvino"]:
        OnnxRunner("cpu", options.threads)  # refuses where the packages are missing
    if origin is not None:
        require_weights(options.file, origin.retrain / WEIGHTS_FILE)
    found = benchmark_file(options.file, validation, options.threads, options.images, options.rounds, options.pause)
    add_benchmark(out, found)
    for line in [json_text(found.model_dump(mode="json"))] if options.json else _outcome(found, origin, out):
        echo(line)
    doubted = doubt(found)
    if doubted is not None:
        sys.stderr.write(f"hitdet-nni: {doubted}\n")


def _outcome(found: FileBenchmark, origin: RunDirectory | None, out: Path) -> list[str]:
    """Return what is printed: precisions, times, what was predicted where that is known, and the file.

    Args:
        found: What was measured.
        origin: The run that the file was exported from, where it is known.
        out: The file that was written.
    """
    from hitdet_nni.commands.shared.measured import beside_prediction
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.config.settings import load_settings
    from hitdet_nni.runs.goal import own_budget

    lines = ["  ".join(f"{name} {value:.3f}" for name, value in found.metrics.items())]
    times = "  ".join(f"{name} {value:.3f} ms" for name, value in found.latency_ms.model_dump().items())
    lines.append(f"{times}  ({found.runs} runs, {found.conditions})")
    if origin is not None:
        predicted = load_architecture(origin.architecture).provenance.latency
        budget = own_budget(origin, load_settings(origin.config))
        if predicted is not None:
            lines.append(beside_prediction(found, predicted, None if budget is None else budget.latency_ms))
    return [*lines, str(out)]


def _refuse_measured(options: Namespace, out: Path) -> None:
    """Refuse to measure a file anew unless forced.

    Raises:
        InputError: If the JSON has a file of that name, or is something else.
    """
    from hitdet_nni.errors import InputError
    from hitdet_nni.runs.benchmark import read_benchmark

    if out.exists() and read_benchmark(out).of(options.file.name) is not None and not options.force:
        problem = f"has figures of {options.file.name} already"
        raise InputError(problem, source=out, allowed="--force, which replaces them, or another file with --out")


def _settings(options: Namespace) -> tuple[Settings, Path, RunDirectory | None]:
    """Return the settings of the images, the file to write, and the run that the exported file must be of.

    Raises:
        InputError: If there is none to write, or a run is to keep figures of other images.
    """
    from hitdet_nni.config.settings import load_settings, parse_overrides
    from hitdet_nni.errors import InputError
    from hitdet_nni.runs.run_directory import find_run

    overrides = parse_overrides(options.overrides)
    if options.run is not None:
        found = find_run(options.run)
        if options.out is not None:
            return load_settings(found.config, overrides), options.out, None
        if overrides:
            raise InputError("is given, and the run keeps figures of its own images", key="--set", allowed="with --out")
        return load_settings(found.config), found.benchmark, found
    if options.out is None:
        raise InputError("is missing", key="--out", allowed="a JSON file to write")
    return load_settings(options.config, overrides), options.out, None
