"""``study latency``: does a table of latencies predict what whole detectors take?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.latency import add_rounds, check_rounds
from hitdet_nni.commands.shared.options import add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 18
NEEDS_SEARCH = False
HELP = "latencies of random detectors predicted by a table, against those measured on the exported file"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study latency``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    parser.add_argument("--table", type=Path, required=True, help="file of `latency`, measured on this machine")
    parser.add_argument("--architectures", type=int, default=20, help="random architectures (default: %(default)s)")
    add_rounds(parser)
    add_study(parser)


def check(options: Namespace, settings: Settings) -> None:
    """Refuse too few architectures, and a table that cannot be read or is of another machine.

    Raises:
        InputError: Naming the option or the table.
    """
    from hitdet_nni.cost.latency_table import load_latency_table
    from hitdet_nni.engine.machine import processor
    from hitdet_nni.errors import InputError

    if options.architectures < 3:
        raise InputError(f"got {options.architectures}", source="--architectures", allowed="3 or more")
    check_rounds(options)
    table = load_latency_table(options.table)
    table.require_machine(processor(table.content.conditions.device), "a table of this machine")


def run(options: Namespace) -> Findings:
    """Draw architectures that the table was not measured with, measure them, and compare."""
    from dataclasses import asdict

    from hitdet_nni.commands.shared.console import settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.cost.cost_model import CostModel
    from hitdet_nni.cost.latency_table import load_latency_table
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.deployment.timing.runtimes import RUNNERS
    from hitdet_nni.deployment.timing.table import measure_detectors
    from hitdet_nni.studies.latency_prediction import Prediction, PredictionSummary
    from hitdet_nni.studies.plots import plot_latency
    from hitdet_nni.studies.random_architectures import random_detectors

    settings = settings_of(options)
    classes = open_data(settings.data, settings.seed).classes
    table = load_latency_table(options.table)
    model = CostModel(settings.skeleton, len(classes), latency=table)
    how = table.content.conditions
    runner = RUNNERS[how.runtime](how.device, how.threads)
    known = [one.sample for one in table.content.detectors]
    layers = table.content.layers_ms
    space = {layer.component: list(layers[layer.label]) for layer in settings.skeleton.searched_layers()}
    detectors = random_detectors(settings, space, classes, options.architectures, "--architectures", known)
    open_study(options, settings)
    costs = [model.architecture(one.sample)["total"] for one in detectors]
    measured = measure_detectors(detectors, runner, rounds=options.rounds, pause=options.pause)
    predictions = [
        Prediction(one.name, cost.gflops, cost.latency_ms, milliseconds)
        for one, cost, milliseconds in zip(detectors, costs, measured, strict=True)
    ]
    summary = PredictionSummary.of(predictions)
    plot_latency(predictions, image_file(options))
    rows = [
        {
            "architecture": one.name,
            "gflops": one.gflops,
            "predicted_ms": one.predicted,
            "measured_ms": one.measured,
            "error": one.error,
        }
        for one in predictions
    ]
    return write_findings(options, rows, summary.sentences(), {"summary": asdict(summary)})
