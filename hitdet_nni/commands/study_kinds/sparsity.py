"""``study sparsity``: what does the column-sparse term do to the scores of screening, and to their agreement?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import product
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import PARTS, add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 30
HELP = "the scores of screening with several weights of the column-sparse term, by each reading of Eq. 4 (Fig. 4)"

GATES = ("softmax", "positive")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study sparsity``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    add_jobs(parser, "screenings")
    add_study(parser)
    parser.add_argument("--part", choices=PARTS, default="backbone", help="what is screened (default: %(default)s)")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, 0.01, 0.1], metavar="MU", help="mu (default: 0 0.01 0.1)"
    )
    parser.add_argument(
        "--gates",
        nargs="+",
        choices=GATES,
        default=list(GATES),
        help="values of screening.gates (default: softmax positive)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=2,
        help="seeds, on the same images, whose agreement is shown (default: %(default)s)",
    )


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a study without a seed.

    Raises:
        InputError: Naming the option.
    """
    from hitdet_nni.errors import InputError

    if options.seeds < 1:
        raise InputError(f"got {options.seeds}", source="--seeds", allowed="1 or more")


def run(options: Namespace) -> Findings:
    """Screen with several weights of the column-sparse term, and plot the scores (Fig. 4)."""
    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine import distributed
    from hitdet_nni.io import write_csv
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.studies.jobs import Work, run_jobs
    from hitdet_nni.studies.plots import plot_scores
    from hitdet_nni.studies.sparsity_ablation import (
        ScoreCurves,
        SparseScreening,
        curve_rows,
        reading_rows,
        screen_sparsely,
        sparse_screenings,
    )

    settings = open_study(options, open_images(settings_of(options))[0])
    readings = list(product(dict.fromkeys(options.gates), dict.fromkeys(options.weights)))
    part = options.part
    jobs = sparse_screenings(settings, part, whole_space(settings), readings, options.seeds, options.out / "runs")

    def echo_end(done: int, total: int, job: SparseScreening, curves: ScoreCurves) -> None:
        if not options.json:
            echo(f"{done}/{total}  {job.folder.name}")

    found = run_jobs(Work("screening", screen_sparsely), jobs, options.jobs, echo_end)
    plot_scores([one for one in found if one.seed == settings.seed], settings.seed, image_file(options))
    curves = curve_rows(found)
    if distributed.is_main():
        write_csv(options.out / "scores.csv", list(curves[0]), curves)
    return write_findings(options, reading_rows(found, getattr(settings.screening.keep, part)), [], {})
