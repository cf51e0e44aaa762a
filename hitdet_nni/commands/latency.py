"""``latency``: a table of what each operator takes in each layer on this machine."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_config, add_file

HELP_ORDER = 75
HELP = "measure what each operator takes in each layer on this machine: a table for budgets in milliseconds"
EXAMPLE = "hitdet-nni latency --config digits --threads 1 --out latency.json"

UNREST = 0.1
"""Share by which bursts may take longer than the fastest before the table is doubted."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``latency``."""
    add_config(parser)
    add_file(parser, "table to write")
    parser.add_argument(
        "--runtime", choices=["onnxruntime", "torch"], default="onnxruntime", help="what runs it (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="what it runs on (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of one operation (default: %(default)s)")
    add_rounds(parser)
    parser.add_argument(
        "--sub-spaces",
        type=Path,
        metavar="FILE",
        help="search space file: measure its operators (default: the config's)",
    )
    parser.add_argument(
        "--detectors",
        type=int,
        default=8,
        help="random architectures measured as a whole, for what lies between layers (default: %(default)s)",
    )


def add_rounds(parser: ArgumentParser) -> None:
    """Add how often a latency is measured."""
    parser.add_argument(
        "--rounds", type=int, default=7, help="bursts of runs; their median counts (default: %(default)s)"
    )
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between rounds (default: %(default)s)")


def check_rounds(options: Namespace) -> None:
    """Refuse rounds and pauses out of range.

    Raises:
        InputError: Naming the option.
    """
    from hitdet_nni.errors import InputError

    if options.rounds < 1:
        raise InputError(f"got {options.rounds}", source="--rounds", allowed="1 or more")
    if not 0 <= options.pause <= 60:
        raise InputError(f"got {options.pause}", source="--pause", allowed="0 to 60 seconds")


def run(options: Namespace) -> None:
    """Measure a table and write it.

    Raises:
        InputError: If an option is out of range, the file exists already, or the runtime is not installed.
    """
    from hitdet_nni.commands.shared.console import echo, refuse_existing, settings_of
    from hitdet_nni.commands.shared.work import watched
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.cost.latency_table import save_latency_table
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.errors import InputError

    check_rounds(options)
    for name, value in (("--threads", options.threads), ("--detectors", options.detectors)):
        if value < 1:
            raise InputError(f"got {value}", source=name, allowed="1 or more")
    settings = settings_of(options)
    refuse_existing(options.out, options.force)
    space = load_search_space(options.sub_spaces or settings.space)
    classes = open_data(settings.data, settings.seed).classes
    prepare_process(options.threads)
    from hitdet_nni.deployment.timing.runtimes import RUNNERS
    from hitdet_nni.deployment.timing.table import measure_table
    from hitdet_nni.studies.random_architectures import random_detectors

    runner = RUNNERS[options.runtime](options.device, options.threads)
    detectors = random_detectors(settings, space, classes, options.detectors, "--detectors")
    with watched():
        table = measure_table(detectors, space, runner, rounds=options.rounds, pause=options.pause)
    save_latency_table(table, options.out)
    if table.conditions.unrest > UNREST:
        share = f"{100 * table.conditions.unrest:.0f} %"
        sys.stderr.write(f"hitdet-nni: the machine was not at rest: runs took {share} longer than at best; try again\n")
    layers = sum(len(row) for row in table.layers_ms.values())
    echo(
        f"{options.out}: {layers} operators in layers, {table.conditions.machine}, overhead {table.overhead_ms:.3g} ms"
    )
