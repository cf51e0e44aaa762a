"""``export-config``: a self-contained mmdet config of an architecture."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace

from hitdet_nni.commands.shared.options import add_config, add_file

logger = logging.getLogger(__name__)

HELP_ORDER = 70
HELP = "write a self-contained mmdet config of an architecture"
EXAMPLE = "hitdet-nni export-config mine.json --config tiny -o hit.py"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``export-config``."""
    add_config(parser)
    parser.add_argument("architecture", help="architecture JSON, run directory, or a shipped name")
    add_file(parser, "mmdet config to write")


def run(options: Namespace) -> None:
    """Write the config.

    Raises:
        InputError: If the config, the architecture or the data is bad, or the file exists already.
    """
    from hitdet_nni.commands.shared.console import echo, refuse_existing, settings_of
    from hitdet_nni.commands.shared.trained import named_architecture
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.io import write_text
    from hitdet_nni.nas.checks import check_classes
    from hitdet_nni.nas.provenance import tell_unused_skeleton, transferred

    settings = settings_of(options)
    architecture = named_architecture(options.architecture)
    refuse_existing(options.out, options.force)
    settings, images = open_images(settings, architecture.skeleton.input_size)
    if settings.retrain.transfer:
        architecture = transferred(architecture, settings, images.classes)
    check_classes(architecture, images, trains=True)
    tell_unused_skeleton(architecture, settings, trains=True)
    prepare_process(settings.threads)
    from hitdet_nni.training.retrain import export_config
    from hitdet_nni.training.runner_config import not_in_a_plain_config

    write_text(options.out, export_config(architecture, settings, images))
    if left_out := not_in_a_plain_config(settings):
        logger.warning("%s does not say %s, by which retrain trains", options.out, ", ".join(left_out))
    echo(str(options.out))
