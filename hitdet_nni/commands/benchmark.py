"""``benchmark``: accuracy and latency of one exported file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.latency import add_rounds, check_rounds
from hitdet_nni.commands.shared.options import add_json, add_overrides, add_overwrite

if TYPE_CHECKING:
    from hitdet_nni.config.settings import Settings

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
    add_overwrite(parser)
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
    from hitdet_nni.data.sources import open_validation
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.errors import InputError

    check_rounds(options)
    for name, value in (("--threads", options.threads), ("--images", options.images)):
        if value < 1:
            raise InputError(f"got {value}", source=name, allowed="1 or more")
    if not options.file.is_file():
        raise InputError("no such file", source=options.file, allowed="a file of hitdet-nni export")
    settings, out, weights = _settings(options)
    refuse_existing(out, options.force)
    validation = open_validation(settings.data, settings.seed)
    prepare_process(1)
    from hitdet_nni.deployment.files import OPENVINO_SUFFIX
    from hitdet_nni.deployment.timing.runtimes import OnnxRunner
    from hitdet_nni.runs.benchmark import write_benchmark
    from hitdet_nni.training.file_benchmark import benchmark_file, require_weights

    if options.file.suffix != OPENVINO_SUFFIX:
        OnnxRunner("cpu", options.threads)  # refuses where the packages are missing
    if weights is not None:
        require_weights(options.file, weights)
    found = benchmark_file(options.file, validation, options.threads, options.images, options.rounds, options.pause)
    write_benchmark(out, found)
    if options.json:
        echo(json_text(found.model_dump(mode="json")))
        return
    echo("  ".join(f"{name} {value:.3f}" for name, value in found.metrics.items()))
    times = "  ".join(f"{name} {value:.3f} ms" for name, value in found.latency_ms.model_dump().items())
    echo(f"{times}  ({found.runs} runs, {found.conditions})")
    echo(str(out))


def _settings(options: Namespace) -> tuple[Settings, Path, Path | None]:
    """Return the settings of the images, the file to write, and the weights that the exported file must be of.

    Raises:
        InputError: If there is none to write, or a run is to keep figures of other images.
    """
    from hitdet_nni.config.settings import load_settings, parse_overrides
    from hitdet_nni.errors import InputError
    from hitdet_nni.io import WEIGHTS_FILE
    from hitdet_nni.runs.run_directory import find_run

    overrides = parse_overrides(options.overrides)
    if options.run is not None:
        found = find_run(options.run)
        if options.out is not None:
            return load_settings(found.config, overrides), options.out, None
        if overrides:
            raise InputError("is given, and the run keeps figures of its own images", key="--set", allowed="with --out")
        return load_settings(found.config), found.benchmark, found.retrain / WEIGHTS_FILE
    if options.out is None:
        raise InputError("is missing", key="--out", allowed="a JSON file to write")
    return load_settings(options.config, overrides), options.out, None
