"""``screen``: from the whole search space to a sub search space of each component."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from hitdet_nni.commands.shared.options import add_training

HELP_ORDER = 40
HELP = "screen the sub search space of each component"
EXAMPLE = "hitdet-nni screen --config tiny --out runs/mine"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``screen``."""
    add_training(parser)


def run(options: Namespace) -> None:
    """Screen, and tell the sub search space of each component.

    Raises:
        InputError: If the config, the data or the run directory is bad.
    """
    from hitdet_nni.commands.shared.console import echo, settings_of
    from hitdet_nni.commands.shared.work import at_work, libraries_loading
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.loggers.packages import require_package
    from hitdet_nni.nas.checks import whole_space
    from hitdet_nni.runs.run_directory import RunDirectory

    settings = settings_of(options)
    whole = whole_space(settings)
    require_package(settings.logger)
    run_directory = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        settings, images = open_images(settings)
        run_directory.check(settings, force=options.force, resume=options.resume)
        with libraries_loading(view, settings):
            from hitdet_nni.loggers.following import followed
            from hitdet_nni.nas.health.validation_batches import tell_too_few_batches
            from hitdet_nni.pipeline.screening import screen

        run_directory.open(settings, force=options.force, resume=options.resume)
        with followed(run_directory, settings), run_directory.timed("screening"):
            tell_too_few_batches(run_directory, settings, images)
            space = screen(run_directory, whole, settings, images)
    for component, names in space.items():
        echo(f"{component}: {', '.join(names)}")
    echo(str(run_directory.sub_spaces))
