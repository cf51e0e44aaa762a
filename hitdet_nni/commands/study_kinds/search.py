"""``study search``: the whole procedure with several seeds against chance, within a budget and at equal price."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.architecture import Architecture
    from hitdet_nni.config.settings import Settings
    from hitdet_nni.runs.run_directory import RunDirectory

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
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.studies.search_study import budget_of

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
    from dataclasses import asdict, replace

    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.studies.jobs import Job, Work, run_jobs, seeded
    from hitdet_nni.studies.plots import plot_search_study
    from hitdet_nni.studies.retrainings import Retraining, retrain_once
    from hitdet_nni.studies.search_study import (
        BEST_OF_FRONT,
        HALVED_RANDOM,
        alike,
        choice,
        choose,
        competitors,
        random_choice,
        random_competitors,
        retraining,
        search_once,
        searches,
        settled_price,
    )
    from hitdet_nni.studies.search_summary import RandomPool, SearchSummary, SeedOutcome
    from hitdet_nni.studies.validation_halves import accuracies

    settings, data = open_images(settings_of(options))
    open_study(options, settings)

    def told(done: int, total: int, one: Job, _: object) -> None:
        if not options.json:
            echo(f"{done}/{total}  {one.folder.name}")

    folder = options.out / "runs"
    every = searches(settings, whole_space(settings), options.seeds, options.samples, folder)
    runs = run_jobs(Work("search", search_once), every, options.jobs, told)
    fixed: dict[tuple[int, str], Retraining] = {}

    def add(place: int, name: str, architecture: Architecture, begun: RunDirectory | None = None) -> None:
        new = retraining(every[place].settings, name, architecture, folder, begun)
        there = alike(fixed.values(), new)
        one = replace(there, begun=begun or there.begun)
        fixed.update({key: one for key, each in fixed.items() if each is there})
        fixed[place, name] = one

    for place, (one, run) in enumerate(zip(every, runs, strict=True)):
        for name, architecture in competitors(one, run, data).items():
            add(place, name, architecture)
    choices = []
    if options.top > 1:
        choices = [choice(one, run, data, options.top, folder) for one, run in zip(every, runs, strict=True)]
    for place, best in enumerate(run_jobs(Work("choice", choose), choices, options.jobs, told)):
        add(place, BEST_OF_FRONT, best.architecture, best.begun)
    retrain = Work("retrain", retrain_once)
    trained = list({one.folder: one for one in fixed.values()}.values())
    run_jobs(retrain, trained, options.jobs, told)
    price = settled_price(options.out, runs, choices, trained)
    randoms = random_competitors(every[0], data, max(options.randoms, price.randoms))
    drawn = [
        retraining(own, name, architecture, folder)
        for own, (name, architecture) in zip(seeded(settings, len(randoms)), randoms.items(), strict=True)
    ]
    run_jobs(retrain, drawn, options.jobs, told)
    halved = price.halved(settings.retrain.epochs)
    rivals = [random_choice(one, data, halved, folder) for one in every]
    for place, best in enumerate(run_jobs(Work("choice", choose), rivals, options.jobs, told)):
        add(place, HALVED_RANDOM, best.architecture, best.begun)
    run_jobs(retrain, [fixed[place, HALVED_RANDOM] for place in range(len(every))], options.jobs, told)
    outcomes = [
        SeedOutcome(
            one.settings.seed,
            {name: accuracies(job, data.val)[1] for (at, name), job in fixed.items() if at == place},
        )
        for place, one in enumerate(every)
    ]
    pool = RandomPool.of([accuracies(one, data.val) for one in drawn])
    summary = SearchSummary.of(outcomes, pool, price, halved)
    plot_search_study(outcomes, pool, price.randoms, image_file(options))
    rows = [
        {"seed": one.seed, **{name.replace(" ", "_"): value for name, value in one.by_way.items()}} for one in outcomes
    ]
    details = {
        "summary": asdict(summary),
        "random": asdict(pool),
        "samples": {one.folder.name: dict(one.architecture.sample) for one in (*fixed.values(), *drawn)},
    }
    return write_findings(options, rows, summary.sentences(), details)
