"""``retrain``: a decided architecture, trained and evaluated."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_jobs, add_json, add_training

if TYPE_CHECKING:
    from hitdet_nni.config.architecture import Architecture
    from hitdet_nni.studies.random_architectures import RandomDraw

HELP_ORDER = 90
HELP = "train an architecture, from scratch or from the supernet's weights, and evaluate it as COCO does"
EXAMPLE = "hitdet-nni retrain --architecture mine.json --config tiny --out runs/mine-retrained"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``retrain``."""
    add_training(parser)
    parser.add_argument(
        "--architecture",
        help="architecture JSON, run directory, or a shipped one's name; with --inherit by default the run's",
    )
    parser.add_argument("--front", type=Path, metavar="RUN", help="take the best within --budget of this run's front")
    parser.add_argument(
        "--budget", type=float, metavar="COST", help="with --front: its cost at most, in the front's unit"
    )
    parser.add_argument(
        "--top",
        type=int,
        default=1,
        metavar="K",
        help="with --front: train K within --budget, half of them filling it, for a while, go on with the better "
        "third, and so on (default: %(default)s)",
    )
    parser.add_argument(
        "--random",
        type=int,
        metavar="K",
        help="draw K random architectures that fill search.budget (without one, of any cost), and train them like "
        "those of --top: a search without a supernet",
    )
    add_jobs(parser, "trainings of --top or --random, until one is left,")
    parser.add_argument(
        "--inherit", type=Path, metavar="RUN", help="start from the weights of the supernet that this run searched"
    )
    add_json(parser)


def run(options: Namespace) -> None:
    """Train, from new weights or the supernet's, evaluate, and write ``metrics.json``.

    Raises:
        InputError: If the config, the data, what is named or the run directory is bad.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, settings_of
    from hitdet_nni.commands.shared.outcome import retraining_outcome
    from hitdet_nni.commands.shared.stages import run_retraining
    from hitdet_nni.runs.run_directory import RunDirectory

    settings = settings_of(options)
    architectures, supernet = _start(options)
    result = run_retraining(
        options.out,
        settings,
        options.config,
        architectures,
        supernet,
        force=options.force,
        resume=options.resume,
        processes=options.jobs,
        as_json=options.json,
    )
    lines = [json_text(result)] if options.json else retraining_outcome(RunDirectory(options.out), result)
    for line in lines:
        echo(line)


def _start(options: Namespace) -> tuple[list[Architecture] | RandomDraw, Path | None]:
    """Return what to train or to choose from, and the weights file of the supernet that it starts from, if any."""
    from hitdet_nni.commands.shared.trained import named_architecture
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.errors import InputError
    from hitdet_nni.runs.run_directory import find_run

    _check_jobs(options)
    if options.random is not None:
        return _random(options), None
    if options.front is not None:
        return _points(options), None
    for key, given in (("--budget", options.budget is not None), ("--top", options.top != 1)):
        if given:
            raise InputError("has no meaning without --front", key=key, allowed="with --front RUN")
    if options.inherit is None:
        if options.architecture is None:
            raise InputError("is missing", key="--architecture", allowed="an architecture, or --inherit RUN")
        return [named_architecture(options.architecture)], None
    source = find_run(options.inherit)
    architecture = named_architecture(options.architecture or str(source.path))
    space = load_search_space(source.require(source.sub_spaces, "search"))
    for layer in architecture.skeleton.searched_layers():
        operator, searched = architecture.sample[layer.label], space[layer.component]
        if operator not in searched:
            raise InputError(f"{layer.label} is {operator}, not searched", source=source.sub_spaces, allowed=searched)
    return [architecture], source.supernet


def _check_jobs(options: Namespace) -> None:
    from hitdet_nni.engine import distributed
    from hitdet_nni.errors import InputError

    if options.jobs < 1:
        raise InputError(f"got {options.jobs}", source="--jobs", allowed="1 or more")
    if options.jobs > 1 and distributed.launched():
        raise InputError(f"got {options.jobs}", source="--jobs", allowed="1 with torchrun, which shares each training")
    if options.jobs > 1 and (options.top if options.random is None else options.random) == 1:
        raise InputError("has no meaning for one training", key="--jobs", allowed="with --top or --random")


def _random(options: Namespace) -> RandomDraw:
    """Return the draw of random architectures that is asked for.

    Raises:
        InputError: If anything else is named, too, or none is wanted.
    """
    from hitdet_nni.errors import InputError
    from hitdet_nni.studies.random_architectures import RandomDraw

    others = {
        "--architecture": options.architecture,
        "--front": options.front,
        "--budget": options.budget,
        "--inherit": options.inherit,
        "--top": None if options.top == 1 else options.top,
    }
    for key, value in others.items():
        if value is not None:
            raise InputError("is given beside --random", key=key, allowed="one of them")
    if options.random < 1:
        raise InputError(f"got {options.random}", source="--random", allowed="1 or more")
    return RandomDraw(options.random)


def _points(options: Namespace) -> list[Architecture]:
    """Return the architectures of a front that are the best within the budget, the best first.

    Raises:
        InputError: If another one is named, too, or the front has none within it, or fewer than are wanted.
    """
    from hitdet_nni.commands.shared.stages import front_points
    from hitdet_nni.errors import InputError
    from hitdet_nni.runs.run_directory import find_run

    for key, value in (("--architecture", options.architecture), ("--inherit", options.inherit)):
        if value is not None:
            raise InputError("is given beside --front", key=key, allowed="one of them")
    if options.budget is None:
        raise InputError("is missing", key="--budget", allowed="a cost, in the front's unit")
    return front_points(find_run(options.front), options.budget, options.top)
