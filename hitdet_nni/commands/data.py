"""``data`` and ``check-data``."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from rich.table import Table

from hitdet_nni.commands.console import console, say
from hitdet_nni.data.coco import read_annotations
from hitdet_nni.data.digits import make_digits
from hitdet_nni.data.pictures import check_pictures
from hitdet_nni.errors import InputError
from hitdet_nni.settings import load_settings, parse_overrides


def data(options: Namespace) -> None:
    """``data digits``."""
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
    """``check-data``: counts and defects of both splits."""
    settings = load_settings(options.config, parse_overrides(options.overrides)).data
    if settings.builtin is not None:
        raise InputError(f"got {settings.builtin!r}", source=options.config, key="data.builtin", allowed="null")
    splits = (("train", settings.train_ann, settings.train_images), ("val", settings.val_ann, settings.val_images))
    result: dict[str, Any] = {}
    defects: list[str] = []
    for split, ann, images in splits:
        if ann is None or images is None:
            raise InputError("missing", source=options.config, key=f"data.{split}_ann")
        dataset = read_annotations(ann, images, key=f"data.{split}_ann", allow_empty_boxes=True)
        found = [f"{defect.file}: {defect.problem}" for defect in check_pictures(dataset)]
        summary = dataset.summary
        result[split] = {
            "pictures": summary.pictures,
            "boxes": summary.boxes,
            "classes": len(summary.classes),
            "crowd boxes": summary.crowd_boxes,
            "ignored boxes": summary.ignored_boxes,
            "boxes partly outside": summary.boxes_partly_outside,
            "pictures without boxes": summary.pictures_without_boxes,
            "defects": found,
        }
        defects += found
    if options.json:
        say(json.dumps(result, indent=2))
    else:
        table = Table("", *result)
        for key in next(iter(result.values())):
            cells = [found[key] for found in result.values()]
            table.add_row(key, *(str(len(cell) if isinstance(cell, list) else cell) for cell in cells))
        console().print(table)
    if defects:
        more = f" (and {len(defects) - 1} more)" if len(defects) > 1 else ""
        raise InputError(f"{defects[0]}{more}")
