"""``study search``: the whole procedure with several seeds against chance, within a budget and at equal price."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 5
HELP = "screening, search and front with several seeds, against random and handmade architectures within the budget"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study search``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the search (default: %(default)s)")
    parser.add_argument(
        "--samples",
        type=int,
        default=192,
        help="architectures that each front tries, and a third as many that fill the budget (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=24,
        help="architectures of each front among which the best is chosen by trainings that pause, 1 for no choice "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--randoms",
        type=int,
        default=20,
        help="random architectures, or as many as the price of a search pays where that is more (default: %(default)s)",
    )
    add_jobs(parser, "searches, and retrainings,")
    add_study(parser)


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a search space that cannot be screened, a search without a budget, too few of anything, and processes.

    Raises:
        InputError: Naming the option or the key.
    """
    from hitdet_nni.engine import distributed
    from hitdet_nni.errors import InputError
    from hitdet_nni.nas.checks import budget_of, whole_space

    space = whole_space(settings)
    budget_of(settings)
    if not set(space["backbone"]) & set(space["neck"]) & set(space["head"]):
        raise InputError(
            "has no operator that all components have", source=settings.space, allowed="one, for the handmade detector"
        )
    if distributed.launched():
        raise InputError("runs in one process", source="torchrun", allowed="--jobs for several trainings side by side")
    if options.samples < 8:
        raise InputError(f"got {options.samples}", source="--samples", allowed="8 or more")
    if options.top < 1:
        raise InputError(f"got {options.top}", source="--top", allowed="1 or more")
    if options.randoms < 2:
        raise InputError(f"got {options.randoms}", source="--randoms", allowed="2 or more")


def run(options: Namespace) -> Findings:
    """Search with each seed, retrain what came of it and what else there is, and compare."""
    from dataclasses import asdict

    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.studies.competition import SearchStudy
    from hitdet_nni.studies.jobs import Job
    from hitdet_nni.studies.plots import plot_search_study
    from hitdet_nni.studies.search_summary import SearchSummary

    settings, data = open_images(settings_of(options))
    open_study(options, settings)

    def told(done: int, total: int, one: Job) -> None:
        if not options.json:
            echo(f"{done}/{total}  {one.folder.name}")

    found = SearchStudy(
        settings,
        whole_space(settings),
        data,
        options.out,
        seeds=options.seeds,
        samples=options.samples,
        top=options.top,
        randoms=options.randoms,
        processes=options.jobs,
        on_end=told,
    ).run()
    summary = SearchSummary.of(found.seeds, found.pool, found.price, found.halved)
    plot_search_study(found.seeds, found.pool, found.price.randoms, image_file(options))
    rows = [
        {"seed": one.seed, **{way.replace(" ", "_"): reached for way, reached in one.by_way.items()}}
        for one in found.seeds
    ]
    details = {"summary": asdict(summary), "random": asdict(found.pool), "samples": found.samples}
    return write_findings(options, rows, summary.sentences(), details)
