"""``search``: from images to an architecture JSON."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_training

HELP_ORDER = 50
HELP = "search the three components together (screens first where that has not been done)"
EXAMPLE = "hitdet-nni search --config tiny --set search.flops_weight=0.1 --out runs/mine"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``search``."""
    add_training(parser)
    parser.add_argument("--sub-spaces", type=Path, help="search space file to use instead of screening")


def run(options: Namespace) -> None:
    """Screen unless that has been done, search, and tell where the architecture JSON is.

    Raises:
        InputError: If the config, the data, the search space or the run directory is bad.
    """
    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.work import at_work, load_libraries
    from hitdet_nni.config.search_space import load_search_space, save_search_space
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.runs.run_directory import RunDirectory
    from hitdet_nni.search.checks import check_budget, whole_space

    settings = settings_of(options)
    given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        images = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        check_budget(whole if given is None else given, settings, len(images.classes))
        load_libraries(view, settings)
        from hitdet_nni.pipeline import screen, search

        only_screened = run_directory.sub_spaces.is_file() and not run_directory.architecture.exists()
        resume = options.resume or (only_screened and not options.force)
        run_directory.open(settings, force=options.force, resume=resume)
        if given is not None:
            save_search_space(given, run_directory.sub_spaces)
            space = given
        else:
            with run_directory.timed("screening"):
                space = screen(run_directory, whole, settings, images)
        with run_directory.timed("search"):
            search(run_directory, space, settings, images)
    echo(str(run_directory.architecture))
