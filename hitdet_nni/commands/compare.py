"""``compare``: several runs on one page."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_file

HELP_ORDER = 150
HELP = "write a page of several runs: their figures, and accuracy against cost"
EXAMPLE = "hitdet-nni compare runs/mine runs/other --out runs.html"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``compare``."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    add_file(parser, "page to write")


def run(options: Namespace) -> None:
    """Write the page.

    Raises:
        InputError: If a run is damaged, or the file exists already.
    """
    from hitdet_nni.commands.shared.console import echo, refuse_existing
    from hitdet_nni.report.page import write_comparison

    refuse_existing(options.out, options.force)
    echo(str(write_comparison(options.runs, options.out)))
