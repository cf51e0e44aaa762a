"""``data`` and ``check-data``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from hitdet_nni.commands.console import console, say
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.data.checks.inspection import Inspection, inspect_detection, inspect_folders
from hitdet_nni.data.checks.object_sizes import ObjectSizes
from hitdet_nni.data.checks.repair import repair, settings_of
from hitdet_nni.data.digits import make_digits
from hitdet_nni.data.layouts.voc_devkit import convert_voc
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

MOST_CLASSES = 20
"""Classes whose objects a table shows; more are for ``--json``."""


def data(options: Namespace) -> None:
    """``data digits`` and ``data voc``.

    Raises:
        InputError: If there is no folder to write to, or what is there may not be overwritten or cannot be read.
    """
    if options.set == "voc":
        written = convert_voc(options.voc, options.out or options.voc, difficult=options.difficult, force=options.force)
        for file, summary in written.items():
            say(f"{file}: {summary}")
        return
    if options.out is None:
        raise InputError("is missing", key="--out", allowed="a folder to write")
    make_digits(
        options.out,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        force=options.force,
    )
    say(f"{options.out}: {options.train} training and {options.val} validation pictures")


def check_data(options: Namespace) -> None:
    """``check-data``: what is in the data, and every defect; of the detection and the classification set, if given.

    With ``--fix`` corrected annotation files are written instead.

    Raises:
        InputError: Naming the first defect and how many others there are.
    """
    settings = load_settings(options.config, parse_overrides(options.overrides))
    if options.fix is not None:
        _fix(settings, options.fix, options.json)
        return
    pretrain = settings.pretrain
    folders = pretrain.train_images is not None or pretrain.val_images is not None
    found: dict[str, Inspection] = {}
    if settings.data.is_named or not folders:
        found.update(inspect_detection(settings.data, settings.skeleton, settings.seed))
    detection = dict(found)
    if folders:
        found.update(inspect_folders(pretrain))
    if options.json:
        say(json.dumps({name: inspection.facts for name, inspection in found.items()}, indent=2))
    else:
        _print_tables(detection, found)
    defects = [defect for inspection in found.values() for defect in inspection.defects]
    if defects:
        more = f" (and {len(defects) - 1} more)" if len(defects) > 1 else ""
        raise InputError(f"{defects[0]}{more}")


def _fix(settings: Settings, out: Path, as_json: bool) -> None:
    """Write corrected annotation files, and say each change and how the files are used."""
    repaired = repair(settings.data, settings.seed, out, settings.skeleton.input_size)
    if as_json:
        say(json.dumps({str(each.file): {"source": str(each.source), "changes": each.changes} for each in repaired}))
        return
    for each in repaired:
        for change in each.changes:
            say(f"{each.source}: {change}")
        told = counted(len(each.changes), "{change|changes}") if each.changes else "a copy, nothing to mend"
        say(f"{each.file}: {told}")
    say(f"use them with {' '.join(settings_of(repaired, settings.data))}")


def _print_tables(detection: Mapping[str, Inspection], found: Mapping[str, Inspection]) -> None:
    """A table of the detection set, one of the classification set, then every warning and defect."""
    for group in (detection, {name: found[name] for name in found.keys() - detection.keys()}):
        if not group:
            continue
        names = sorted(group)
        table = Table("", *names)
        rows = _merged([list(group[name].counts) for name in names])
        for row in rows:
            table.add_row(row, *(str(group[name].counts.get(row, "-")) for name in names))
        for kind in ("warnings", "hints", "defects"):
            table.add_row(kind, *(str(len(getattr(group[name], kind))) for name in names))
        console().print(table)
    if any("/" in str(value) for inspection in found.values() for value in inspection.counts.values()):
        say("a / b / c: smallest, middle and largest")
    _print_objects(detection)
    for inspection in found.values():
        for kind in ("note", "warning", "hint", "defect"):
            for line in getattr(inspection, f"{kind}s"):
                say(f"{kind}: {line}")


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All rows of several tables, each before the one that it stands before in its table."""
    merged: list[str] = []
    for order in orders:
        place = len(merged)
        for row in reversed(order):
            if row in merged:
                place = merged.index(row)
            else:
                merged.insert(place, row)
    return merged


def _sides(one: ObjectSizes) -> str:
    sides = (one.smallest, one.median, one.largest)
    return " / ".join(f"{side:.0f}" if side >= 10 else f"{side:.1f}" for side in sides)


def _print_objects(detection: Mapping[str, Inspection]) -> None:
    """A table of the sizes of each class's objects at the network's input; of many classes, those of the smallest."""
    halves = [name for name in sorted(detection) if detection[name].objects]
    if not halves:
        return
    sizes = {name: {one.name: one for one in detection[name].objects} for name in halves}
    smallest: dict[str, float] = {}
    for one in (one for name in halves for one in sizes[name].values()):
        smallest[one.name] = min(one.smallest, smallest.get(one.name, one.smallest))
    shown = sorted(smallest, key=lambda name: (smallest[name], name))[:MOST_CLASSES]
    sides_of = (Column(f"{name} sides", no_wrap=True) for name in halves)
    table = Table("class", *sides_of, *(f"{name} out of reach" for name in halves))
    for class_name in shown:
        ones = [sizes[name].get(class_name) for name in halves]
        sides = ["-" if one is None else _sides(one) for one in ones]
        missed = ["-" if one is None else f"{one.out_of_reach} of {one.boxes}" for one in ones]
        table.add_row(escape(class_name), *sides, *missed)
    console().print(table)
    say("sides: roots of the objects' areas, in pixels of the network's input (skeleton.input_size)")
    if len(shown) < len(smallest):
        say(f"the {len(shown)} of {len(smallest)} classes with the smallest objects; --json has all")
