"""``screen`` and ``search``: from pictures to an architecture JSON."""

from __future__ import annotations

from argparse import Namespace

from hitdet_nni.commands.console import say, settings_of
from hitdet_nni.commands.work import at_work, load_libraries
from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.data.sources import open_data
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.search.checks import check_budget, whole_space


def screen_command(options: Namespace) -> None:
    """``screen``: the sub search space of each component."""
    settings = settings_of(options)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        pictures = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        load_libraries(view, settings)
        from hitdet_nni.pipeline import screen

        run_directory.open(settings, force=options.force, resume=options.resume)
        with run_directory.timed("screening"):
            space = screen(run_directory, whole, settings, pictures)
    for component, names in space.items():
        say(f"{component}: {', '.join(names)}")
    say(str(run_directory.sub_spaces))


def search_command(options: Namespace) -> None:
    """``search``: from pictures to an architecture JSON."""
    settings = settings_of(options)
    given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        pictures = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        check_budget(whole if given is None else given, settings, len(pictures.classes))
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
                space = screen(run_directory, whole, settings, pictures)
        with run_directory.timed("search"):
            search(run_directory, space, settings, pictures)
    say(str(run_directory.architecture))
