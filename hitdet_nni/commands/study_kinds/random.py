"""``study random``: is what the search finds better than chance?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_studied_run, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings

HELP_ORDER = 10
HELP = "the found architecture against random ones of its cost, all retrained under one protocol"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study random``."""
    add_studied_run(parser)
    add_study(parser)
    parser.add_argument("--architectures", type=int, default=8, help="random architectures (default: %(default)s)")
    parser.add_argument(
        "--slack",
        type=float,
        default=0.1,
        help="random ones cost at most as much as the searched one, and at most this share less (default: %(default)s)",
    )


def run(options: Namespace) -> Findings:
    """Retrain the found architecture and random ones of its cost under one protocol."""
    from dataclasses import asdict

    from hitdet_nni.commands.shared.findings import (
        image_file,
        open_study,
        protocol,
        read_searched,
        trained_rows,
        write_findings,
    )
    from hitdet_nni.studies.plots import plot_random_study
    from hitdet_nni.studies.random_baseline import Summary, draw_random_baselines, rate_by_supernet

    searched, settings, data = read_searched(options)
    architectures = draw_random_baselines(searched, settings, data, options.architectures, options.slack)
    open_study(options, settings)
    losses = rate_by_supernet(searched, settings, data, architectures)
    trained = protocol(options, settings).retrain(architectures)
    summary = Summary.of(trained, losses)
    plot_random_study(trained, losses, summary, image_file(options))
    rows = [{**row, "supernet_loss": losses[one.name]} for row, one in zip(trained_rows(trained), trained, strict=True)]
    details = {"summary": asdict(summary), "samples": {one.name: dict(one.sample) for one in trained}}
    return write_findings(options, rows, summary.sentences(), details)
