"""``report``: the page of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_overwrite

HELP_ORDER = 140
HELP = "write a page of a run in any state, or of a study: one HTML file that needs no network"
EXAMPLE = "hitdet-nni report runs/mine --out mine.html"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    parser.add_argument("run", type=Path, help="run directory, also a study's")
    parser.add_argument("--out", "-o", type=Path, metavar="FILE", help="page to write (default: RUN/report.html, anew)")
    parser.add_argument(
        "--images",
        type=int,
        default=6,
        metavar="N",
        help="validation images to show detections on, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write the curves for TensorBoard there, too (needs the package tensorboard)",
    )
    add_overwrite(parser)


def run(options: Namespace) -> None:
    """Write the page, and the curves where that is asked for; what the page lacks is a warning.

    Raises:
        InputError: If the run is damaged, a file exists already, or the package tensorboard is needed and missing.
    """
    from hitdet_nni.commands.shared.console import echo, refuse_existing
    from hitdet_nni.loggers.packages import require_package
    from hitdet_nni.loggers.tensorboard import write_scalars
    from hitdet_nni.report.page import write_report

    if options.tensorboard is not None:
        require_package("tensorboard", "--tensorboard")
    if options.out is not None:
        refuse_existing(options.out, options.force)
    echo(str(write_report(options.run, options.out, images=options.images)))
    if options.tensorboard is not None:
        echo(str(write_scalars(options.run, options.tensorboard)))
