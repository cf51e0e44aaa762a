"""``import-weights``: the public release's checkpoint as weights of this package."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hitdet_nni.commands.shared.options import add_file

HELP_ORDER = 65
HELP = "write a checkpoint of the released Hit-Detector as weights that evaluate, detect and export take"
EXAMPLE = "hitdet-nni import-weights hitdet_1x.pth --out weights.pth"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``import-weights``."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint of mmdet 1")
    add_file(parser, "weights to write")


def run(options: Namespace) -> None:
    """Rename all tensors and write them.

    Raises:
        InputError: If the checkpoint cannot be read, or is of another network, or the file exists already.
    """
    from hitdet_nni.commands.shared.console import echo, refuse_existing
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.engine.process import prepare_process

    refuse_existing(options.out, options.force)
    prepare_process(1)
    from hitdet_nni.training.released_weights import ARCHITECTURE, import_weights

    import_weights(options.checkpoint, load_architecture(ARCHITECTURE), options.out)
    echo(f"{options.out}: weights of the architecture {ARCHITECTURE}")
