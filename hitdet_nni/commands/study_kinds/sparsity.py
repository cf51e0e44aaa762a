"""``study sparsity``: what does the column-sparse term do to the scores of screening?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import PARTS, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 30
HELP = "the scores of screening with several weights of the column-sparse term (Fig. 4)"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study sparsity``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    add_study(parser)
    parser.add_argument("--part", choices=PARTS, default="backbone", help="what is screened (default: %(default)s)")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, 0.01, 0.1], metavar="MU", help="mu (default: 0 0.01 0.1)"
    )


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a screening that the column-sparse term has no part in.

    Raises:
        InputError: If operators are ranked by sampled architectures.
    """
    from hitdet_nni.errors import InputError

    if settings.screening.rank_by == "samples":
        problem = "got 'samples', which mu has no effect on"
        raise InputError(problem, source=options.config, key="screening.rank_by", allowed="probability, norm")


def run(options: Namespace) -> Findings:
    """Screen with several weights of the column-sparse term, and plot the scores (Fig. 4)."""
    from hitdet_nni.commands.shared.console import settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.io import write_csv
    from hitdet_nni.search.checks import whole_space
    from hitdet_nni.studies.plots import plot_scores
    from hitdet_nni.studies.sparsity_ablation import curve_rows, screen_with

    settings = open_study(options, settings_of(options))
    data, space = open_data(settings.data, settings.seed, settings.skeleton.input_size), whole_space(settings)
    found = [screen_with(mu, options.part, space, settings, data, options.out / f"mu-{mu:g}") for mu in options.weights]
    plot_scores(found, settings.seed, image_file(options))
    rows = [{"mu": one.weight, "deviation": one.deviation, "range": one.width} for one in found]
    curves = curve_rows(found)
    write_csv(options.out / "scores.csv", list(curves[0]), curves)
    return write_findings(options, rows, [], {})
