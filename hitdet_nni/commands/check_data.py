"""``check-data``: what is in the data, every defect of them, and corrected files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_config, add_json

if TYPE_CHECKING:
    from hitdet_nni.config.settings import Settings
    from hitdet_nni.data.checks.inspection import Inspection

HELP_ORDER = 20
HELP = "read annotations and images fully and list every defect"
EXAMPLE = "hitdet-nni check-data --config my_data.yml"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``check-data``."""
    add_config(parser)
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write corrected annotation files, in COCO format, into this folder, and list each change",
    )
    add_json(parser)


def run(options: Namespace) -> None:
    """Tell what is in the data, and every defect; of the detection and the classification set, if given.

    With ``--fix`` corrected annotation files are written instead.

    Raises:
        InputError: Naming the first defect and how many others there are.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, settings_of
    from hitdet_nni.commands.shared.inspection_tables import print_inspections
    from hitdet_nni.data.checks.inspection import inspect_detection, inspect_folders
    from hitdet_nni.errors import InputError

    settings = settings_of(options)
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
        echo(json_text({name: inspection.facts for name, inspection in found.items()}))
    else:
        print_inspections(detection, found)
    defects = [defect for inspection in found.values() for defect in inspection.defects]
    if defects:
        more = f" (and {len(defects) - 1} more)" if len(defects) > 1 else ""
        raise InputError(f"{defects[0]}{more}")


def _fix(settings: Settings, out: Path, as_json: bool) -> None:
    """Write corrected annotation files, and print each change and how the files are used."""
    import json

    from hitdet_nni.commands.shared.console import echo
    from hitdet_nni.data.checks.repair import repair
    from hitdet_nni.data.checks.repaired_settings import settings_of
    from hitdet_nni.data.wording import counted

    repaired = repair(settings.data, settings.seed, out, settings.skeleton.input_size)
    if as_json:
        keys = ("changes", "left_out")
        facts = {
            str(each.file): {"source": str(each.source), **{key: getattr(each, key) for key in keys}}
            for each in repaired
        }
        echo(json.dumps(facts))
        return
    for each in repaired:
        for line in each.left_out:
            echo(line)
        for change in each.changes:
            echo(f"{each.source}: {change}")
        numbers = {
            "{defect|defects} left out with {its image|their images}": len(each.left_out),
            "{change|changes}": len(each.changes),
        }
        told = ", ".join(counted(count, what) for what, count in numbers.items() if count)
        echo(f"{each.file}: {told or (f'the rest of {each.source}' if each.rest else 'a copy, nothing to mend')}")
    echo(f"use them with {' '.join(settings_of(repaired, settings.data))}")
