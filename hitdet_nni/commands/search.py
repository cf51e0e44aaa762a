"""``search``: from images to an architecture JSON."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_training

if TYPE_CHECKING:
    from hitdet_nni.config.search_space import SearchSpace
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 50
HELP = "search the three components together (screens first where that has not been done)"
EXAMPLE = "hitdet-nni search --config tiny --set search.flops_weight=0.1 --out runs/mine"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``search``."""
    add_training(parser)
    parser.add_argument("--sub-spaces", type=Path, help="search space file to use instead of screening")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would choose from and how many steps it would take"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="do some steps of every stage beside --out and say how long all will take here, and in how much memory",
    )


def run(options: Namespace) -> None:
    """Screen unless that has been done, search, and tell what was found and what comes next.

    Raises:
        InputError: If the config, the data, the search space or the run directory is bad.
    """
    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.outcome import config_words, search_outcome
    from hitdet_nni.commands.shared.stages import run_search
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.runs.run_directory import RunDirectory

    settings = settings_of(options)
    given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
    if options.dry_run:
        _tell_outlook(settings, given)
    if options.rehearse:
        _tell_rehearsal(options, settings, given)
    if options.dry_run or options.rehearse:
        return
    found = run_search(options.out, settings, options.config, given, force=options.force, resume=options.resume)
    same_config = config_words(options.config, options.overrides)
    for line in search_outcome(RunDirectory(options.out), found, settings.search.budget, same_config):
        echo(line)


def _tell_outlook(settings: Settings, given: SearchSpace | None) -> None:
    """Print what the search would choose from and how many steps it would take; refuse what it would refuse."""
    from hitdet_nni.commands.shared.console import echo, show
    from hitdet_nni.commands.shared.work import tell_of_cpu_presets
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.nas.checks import budget_cost_model, check_budget, tell_unused_budget, whole_space

    space = whole_space(settings) if given is None else given
    settings, images = open_images(settings)
    tell_unused_budget(check_budget(space, settings, len(images.classes)))
    prepare_process(settings.threads)
    from rich.table import Table

    from hitdet_nni.cost.units import UNITS
    from hitdet_nni.nas.outlook import Outlook, count_in_words, pretrainings, stage_steps, tell_long_warmup

    model = budget_cost_model(settings.skeleton, len(images.classes), settings.search.budget)
    outlook = Outlook.of(model, space)
    table = Table(title=count_in_words(outlook.architectures))
    for heading in ("cost", "least", "uniform", "largest"):
        table.add_column(heading, justify="left" if heading == "cost" else "right")
    for key, row in outlook.costs.items():
        table.add_row(UNITS[key].name, *(f"{value:.4g}" for value in (row.least, row.uniform, row.largest)))
    show(table)
    echo("FLOPs are multiply-adds of one image")
    tell_of_cpu_presets(settings)
    tell_long_warmup(settings, images)
    screened = space if given is None else None
    for stage, steps in stage_steps(settings, images, screened).items():
        echo(f"{stage}: {steps} steps")
    if count := pretrainings(settings, images, screened):
        often = "once" if count == 1 else f"{count} times"
        echo(f"before the supernets the backbone is pretrained {often}, for {settings.pretrain.epochs} epochs each")


def _tell_rehearsal(options: Namespace, settings: Settings, given: SearchSpace | None) -> None:
    """Do some steps of every stage, and print how long all will take, and in how much memory."""
    import shutil

    from rich.table import Table

    from hitdet_nni.commands.shared.console import echo, show
    from hitdet_nni.commands.shared.work import libraries_loading, working
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine import distributed
    from hitdet_nni.engine.progress_view import clock
    from hitdet_nni.errors import InputError
    from hitdet_nni.nas.checks import check_budget, whole_space

    space = whole_space(settings) if given is None else given
    out = options.out.absolute()
    folder = out.with_name(f"{out.name or 'root'}-rehearsal")
    main = distributed.launched_as_main()
    if main and folder.exists():
        raise InputError("is there already", source=folder, key="--rehearse", allowed="another --out, or none such")
    try:
        with working(folder, "rehearsal", options.config) as view:
            settings, images = open_images(settings)
            check_budget(space, settings, len(images.classes))
            with libraries_loading(view, settings):
                from hitdet_nni.pipeline.rehearsal import rehearse

            found = rehearse(folder, settings, images, space, screens=given is None)
    finally:
        if main:
            shutil.rmtree(folder, ignore_errors=True)
    if not main:
        return
    table = Table()
    table.add_column("stage")
    table.add_column("here, about", justify="right")
    for stage, seconds in found.seconds.items():
        table.add_row(stage, clock(seconds))
    table.add_section()
    table.add_row("all", clock(sum(found.seconds.values())))
    show(table)
    echo("steps and evaluations alone; to load libraries and build networks takes some seconds more in each stage")
    echo(f"a process held {found.peak / 1e9:.2f} GB at most")
    if settings.pretrain.boxes:
        echo("the pretraining of the backbone is not among these")
