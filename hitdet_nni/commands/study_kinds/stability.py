"""``study stability``: do other seeds come to the same operators on the same images?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 15
HELP = "the screening or the search with several seeds on the same images: their agreement, beside what chance gives"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study stability``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    add_jobs(parser, "seeds")
    add_study(parser)
    parser.add_argument(
        "--stage",
        choices=("screening", "search"),
        default="screening",
        help="what is repeated; all searches have the sub search spaces of one screening (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds, at least 2 (default: %(default)s)")
    parser.add_argument("--sub-spaces", type=Path, help="search space file for the searches instead of screening")


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a single seed, sub-spaces without a search, and a search space that cannot be screened.

    Raises:
        InputError: Naming the option or the key.
    """
    from hitdet_nni.config.screening_settings import screened_components
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.errors import InputError
    from hitdet_nni.nas.checks import whole_space

    if options.seeds < 2:
        raise InputError(f"got {options.seeds}", source="--seeds", allowed="2 or more: one agrees with itself only")
    if options.sub_spaces is None:
        whole = whole_space(settings)
        if options.stage == "screening" and not screened_components(settings.screening, whole):
            allowed = f"fewer than the operators of {settings.space}, for one component at least"
            raise InputError("keeps all operators", source="study stability", key="screening.keep", allowed=allowed)
    elif options.stage == "screening":
        raise InputError("got a file, and screening starts from the whole space", source="--sub-spaces", allowed="none")
    else:
        load_search_space(options.sub_spaces)


def run(options: Namespace) -> Findings:
    """Screen or search with several seeds, and say whether they agree more than chance."""
    from dataclasses import asdict

    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, write_findings
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine import distributed
    from hitdet_nni.io import write_csv
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.pipeline.screening import screen
    from hitdet_nni.runs.run_directory import RunDirectory
    from hitdet_nni.runs.sub_spaces import kept_sub_spaces
    from hitdet_nni.studies.jobs import Work, run_jobs
    from hitdet_nni.studies.plots import plot_ranks
    from hitdet_nni.studies.stability import (
        Repetition,
        agreement_rows,
        compare,
        judgement,
        preferences,
        rank_rows,
        repeat,
        repetitions,
    )

    settings, data = open_images(settings_of(options))
    open_study(options, settings)
    if options.stage == "screening":
        space = whole_space(settings)
    else:
        given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
        study = RunDirectory(options.out)
        space = kept_sub_spaces(study, given) or screen(study, whole_space(settings), settings, data)

    def echo_end(done: int, total: int, one: Repetition, run: RunDirectory) -> None:
        if not options.json:
            echo(f"{done}/{total}  {one.folder.name}")

    repeated = repetitions(settings, options.stage, space, options.seeds, options.out / "runs")
    runs = run_jobs(Work(options.stage, repeat), repeated, options.jobs, echo_end)
    seeds = [one.settings.seed for one in repeated]
    found = [preferences(run, one) for run, one in zip(runs, repeated, strict=True)]
    agreements = compare(found)
    plot_ranks(found, space, seeds, image_file(options))
    ranks = rank_rows(found, space, seeds)
    if distributed.is_main():
        write_csv(options.out / "ranks.csv", list(ranks[0]), ranks)
    sentences = judgement(agreements, options.stage, options.seeds)
    details = {
        "stage": options.stage,
        "seeds": seeds,
        "agreement": {component: asdict(agreement) for component, agreement in agreements.items()},
    }
    return write_findings(options, agreement_rows(agreements, seeds), sentences, details)
