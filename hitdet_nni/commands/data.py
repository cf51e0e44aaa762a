"""``data``: data sets to begin with."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

HELP_ORDER = 10
HELP = "make an embedded data set, or COCO annotation files of PASCAL VOC"
EXAMPLE = "hitdet-nni data digits --out digits --train 300 --val 60 --size 128 --seed 0"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``data``."""
    parser.add_argument(
        "set",
        choices=["digits", "digits_dense", "voc"],
        help="few digits, upright and apart; many small ones, turned and overlapping; COCO files of PASCAL VOC 07+12",
    )
    parser.add_argument("--out", type=Path, help="folder to write (voc: by default the one of --voc)")
    parser.add_argument("--voc", type=Path, metavar="DIR", help="VOCdevkit: the folder that holds VOC2007 and VOC2012")
    parser.add_argument(
        "--difficult",
        choices=["crowd", "keep", "drop"],
        default="crowd",
        help="objects marked difficult: ignored like crowds, ordinary, or left out (default: %(default)s)",
    )
    parser.add_argument("--train", type=int, default=300, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=60, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images, pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace what is there")


def run(options: Namespace) -> None:
    """Make the set that is named.

    Raises:
        InputError: If there is no folder to write to, or what is there may not be overwritten or cannot be read.
    """
    from hitdet_nni.commands.shared.console import echo
    from hitdet_nni.data.digits import EMBEDDED_SETS, make_digits
    from hitdet_nni.data.layouts.voc_devkit import convert_voc
    from hitdet_nni.errors import InputError

    if options.set == "voc":
        written = convert_voc(options.voc, options.out or options.voc, difficult=options.difficult, force=options.force)
        for file, summary in written.items():
            echo(f"{file}: {summary}")
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
        kind=EMBEDDED_SETS[options.set],
    )
    echo(f"{options.out}: {options.train} training and {options.val} validation images")
