"""``data`` and ``check-data``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from hitdet_nni.commands.console import console, say
from hitdet_nni.data.digits import make_digits
from hitdet_nni.data.inspection import Inspection, inspect_detection, inspect_folders
from hitdet_nni.data.repair import repair, settings_of
from hitdet_nni.data.voc import convert_voc
from hitdet_nni.errors import InputError
from hitdet_nni.settings import Settings, load_settings, parse_overrides


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
        found.update(inspect_detection(settings.data, settings.seed, settings.skeleton.input_size))
    detection = dict(found)
    if folders:
        found.update(inspect_folders(pretrain))
    if options.json:
        flat = {
            name: {**inspection.counts, "warnings": inspection.warnings, "defects": inspection.defects}
            for name, inspection in found.items()
        }
        say(json.dumps(flat, indent=2))
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
        say(f"{each.file}: {len(each.changes)} changes" if each.changes else f"{each.file}: a copy, nothing to mend")
    say(f"use them with {' '.join(settings_of(repaired, settings.data))}")


def _print_tables(detection: Mapping[str, Inspection], found: Mapping[str, Inspection]) -> None:
    """A table of the detection set, one of the classification set, then every warning and defect."""
    for group in (detection, {name: found[name] for name in found.keys() - detection.keys()}):
        if not group:
            continue
        names = sorted(group)
        table = Table("", *names)
        rows = dict.fromkeys(row for name in names for row in group[name].counts)
        for row in rows:
            table.add_row(row, *(str(group[name].counts.get(row, "-")) for name in names))
        for kind in ("warnings", "defects"):
            table.add_row(kind, *(str(len(getattr(group[name], kind))) for name in names))
        console().print(table)
    if any("/" in str(value) for inspection in found.values() for value in inspection.counts.values()):
        say("a / b / c: smallest, middle and largest")
    for inspection in found.values():
        for line in inspection.warnings:
            say(f"warning: {line}")
        for line in inspection.defects:
            say(f"defect: {line}")
