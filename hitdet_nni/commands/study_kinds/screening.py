"""``study screening``: are the operators that a screening keeps better than others?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 12
NEEDS_SEARCH = False
HELP = "architectures of the sub search spaces that a screening kept against some of random ones, at equal cost"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study screening``."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="run directory of the screening")
    parser.add_argument(
        "--architectures", type=int, default=8, help="architectures of each kind (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="retrainings of each architecture (default: %(default)s)")
    parser.add_argument(
        "--slack",
        type=float,
        default=0.1,
        help="all cost at most the median of the kept sub-spaces, and at most this share less (default: %(default)s)",
    )
    add_jobs(parser)
    add_study(parser)


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a single architecture of each kind, which nothing can be exchanged with.

    Raises:
        InputError: Naming the option.
    """
    from hitdet_nni.errors import InputError

    if options.architectures < 2:
        raise InputError(f"got {options.architectures}", source="--architectures", allowed="2 or more")


def run(options: Namespace) -> Findings:
    """Retrain architectures of the kept sub-spaces and of random ones under one protocol."""
    from dataclasses import asdict

    from hitdet_nni.commands.shared.findings import (
        image_file,
        open_study,
        protocol,
        trained_rows,
        write_findings,
    )
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.config.settings import load_settings, parse_overrides
    from hitdet_nni.cost.cost_model import CostModel
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.nas.provenance import describe_architecture
    from hitdet_nni.runs.run_directory import find_run
    from hitdet_nni.studies.plots import plot_trained
    from hitdet_nni.studies.random_architectures import samples_of_cost
    from hitdet_nni.studies.score_prediction import places_above, score_predictions
    from hitdet_nni.studies.screened_space import ScreeningComparison, samples_of_random_spaces, typical_cost

    run = find_run(options.run)
    settings, data = open_images(load_settings(run.config, parse_overrides(options.overrides)))
    space, whole = load_search_space(run.require(run.sub_spaces, "screen")), whole_space(settings)
    above = places_above(run, whole)
    model = CostModel(settings.skeleton, len(data.classes))
    most = typical_cost(model, space, settings.seed)
    least, count = (1 - options.slack) * most, options.architectures
    kept = samples_of_cost(model, space, count, most, options.slack, seed=settings.seed)
    drawn = samples_of_random_spaces(model, whole, space, count, least=least, most=most, seed=settings.seed)
    architectures = {
        f"{kind}-{number:02d}": describe_architecture(
            f"{kind}-{number:02d}", sample, whole, settings, data.classes, source="random"
        )
        for kind, samples in (("kept", kept), ("random", drawn))
        for number, sample in enumerate(samples, 1)
    }
    open_study(options, settings)
    trained = protocol(options, settings).retrain(architectures)
    comparison = ScreeningComparison.of(trained[:count], trained[count:], settings.seed)
    predictions = score_predictions(trained, above, settings.seed)
    plot_trained(trained, image_file(options))
    details = {
        "summary": asdict(comparison),
        "predictions": [asdict(one) for one in predictions],
        "samples": {one.name: dict(one.sample) for one in trained},
    }
    sentences = [*comparison.sentences(), *(one.sentence() for one in predictions)]
    return write_findings(options, trained_rows(trained), sentences, details)
