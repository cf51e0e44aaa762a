"""``screen``, ``search`` and ``export`` without a model format: from pictures to an architecture JSON."""

from __future__ import annotations

import csv
from argparse import Namespace

from hitdet_nni.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.checks import check_budget, whole_space
from hitdet_nni.commands.console import refuse_existing, say, settings_of
from hitdet_nni.data.sources import open_data
from hitdet_nni.description import describe_architecture
from hitdet_nni.errors import InputError
from hitdet_nni.files import read_text, whole_lines
from hitdet_nni.procedure import screen, search
from hitdet_nni.run_directory import RunDirectory, find_run
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.search_space import load_search_space, save_search_space
from hitdet_nni.settings import load_settings


def _say_epoch(stage: str, record: EpochRecord) -> None:
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in record.metrics().items())
    say(f"{stage}  epoch {record.epoch + 1}  {numbers}")


def screen_command(options: Namespace) -> None:
    """``screen``: the sub search space of each component."""
    settings = settings_of(options)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    run_directory.open(settings, force=options.force, resume=options.resume)
    with run_directory.timed("screening"):
        space = screen(run_directory, whole, settings, pictures, _say_epoch)
    for component, names in space.items():
        say(f"{component}: {', '.join(names)}")
    say(str(run_directory.sub_spaces))


def search_command(options: Namespace) -> None:
    """``search``: from pictures to an architecture JSON."""
    settings = settings_of(options)
    given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    check_budget(whole if given is None else given, settings, len(pictures.classes))
    only_screened = run_directory.sub_spaces.is_file() and not run_directory.architecture.exists()
    run_directory.open(settings, force=options.force, resume=options.resume or (only_screened and not options.force))
    if given is not None:
        save_search_space(given, run_directory.sub_spaces)
        space = given
    else:
        with run_directory.timed("screening"):
            space = screen(run_directory, whole, settings, pictures, _say_epoch)
    with run_directory.timed("search"):
        search(run_directory, space, settings, pictures, _say_epoch)
    say(str(run_directory.architecture))


def export(options: Namespace) -> None:
    """``export``: a run's architecture, or the one that its alphas showed after an epoch."""
    found = find_run(options.source)
    refuse_existing(options.out, options.force)
    if options.epoch is None:
        architecture = load_architecture(found.architecture)
    else:
        architecture = _decode_epoch(found, options.epoch)
    save_architecture(architecture, options.out)
    say(str(options.out))


def _decode_epoch(found: RunDirectory, epoch: int) -> Architecture:
    rows = [row for row in csv.DictReader(whole_lines(read_text(found.alphas))) if row.get("epoch") == str(epoch)]
    if not rows:
        raise InputError(f"no epoch {epoch}", source=found.alphas, key="--epoch", allowed="an epoch of the search")
    settings = load_settings(found.config)
    space = load_search_space(found.sub_spaces)
    best: dict[str, tuple[float, str]] = {
        layer.label: (float("-inf"), space[layer.component][0]) for layer in settings.skeleton.searched_layers()
    }
    try:
        for row in rows:
            best[row["label"]] = max(best[row["label"]], (float(row["alpha"]), row["operator"]))
    except (KeyError, TypeError, ValueError):
        raise InputError("is not a table of alphas", source=found.alphas) from None
    there = {(row["label"], row["operator"]) for row in rows}
    for layer in settings.skeleton.searched_layers():
        candidates = space[layer.component]
        missing = [name for name in candidates if len(candidates) > 1 and (layer.label, name) not in there]
        if missing:
            raise InputError(f"epoch {epoch} has no alpha of {missing[0]} in {layer.label}", source=found.alphas)
    sample = {label: name for label, (_, name) in best.items()}
    classes = open_data(settings.data, settings.seed).classes
    return describe_architecture(f"{found.path.name}-epoch{epoch}", sample, space, settings, classes)
