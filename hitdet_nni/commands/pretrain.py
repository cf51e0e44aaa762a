"""``pretrain``: the weights that a supernet's or a found detector's backbone starts from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_json, add_training

if TYPE_CHECKING:
    from hitdet_nni.config.architecture import Architecture

HELP_ORDER = 30
HELP = "train the backbone of a supernet (the config's space), or of an architecture, as a classifier"
EXAMPLE = (
    "hitdet-nni pretrain --config my_data.yml --set pretrain.train_images=imagenet/train "
    "--set pretrain.val_images=imagenet/val --component-screening --out runs/pretrained"
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``pretrain``."""
    add_training(parser)
    add_json(parser)
    backbone = parser.add_mutually_exclusive_group()
    backbone.add_argument("--architecture", help="the backbone of an architecture JSON, run directory, or shipped name")
    backbone.add_argument("--sub-spaces", type=Path, help="the supernet of this search space file, as `search` has it")
    backbone.add_argument(
        "--component-screening", action="store_true", help="the supernet as `screen` has it: screening.depths blocks"
    )


def run(options: Namespace) -> None:
    """Train a backbone as a classifier and write its weights.

    Raises:
        InputError: If the config, the images, what is named or the run directory is bad.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, settings_of
    from hitdet_nni.commands.shared.trained import named_architecture
    from hitdet_nni.commands.shared.work import at_work, libraries_loading
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.data.box_crops import open_boxes
    from hitdet_nni.data.class_folders import open_folders
    from hitdet_nni.data.sources import open_data
    from hitdet_nni.runs.run_directory import RunDirectory

    settings = settings_of(options)
    found: Architecture | None = None
    operators: list[str] = []
    if options.architecture is not None:
        found = named_architecture(options.architecture)
    else:
        operators = load_search_space(options.sub_spaces or settings.space)["backbone"]
    directory = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        if settings.pretrain.boxes:
            input_size = settings.skeleton.input_size
            images = open_boxes(open_data(settings.data, settings.seed, input_size), settings)
        else:
            images = open_folders(settings.pretrain)
        with libraries_loading(view, settings):
            from hitdet_nni.training.pretrain import Backbone, found_backbone, open_run, pretrain, weights_file

        skeleton = settings.skeleton
        if options.component_screening and settings.screening.depths is not None:
            skeleton = skeleton.model_copy(update={"depths": settings.screening.depths})
        backbone = Backbone(skeleton, tuple(operators)) if found is None else found_backbone(found)
        open_run(directory, backbone, settings, force=options.force, resume=options.resume)
        with directory.timed("pretrain"):
            result = pretrain(directory, backbone, settings, images)
    echo(json_text(result) if options.json else str(weights_file(directory)))
