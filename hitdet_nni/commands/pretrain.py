"""``pretrain``: the weights that a supernet's or a found detector's backbone starts from."""

from __future__ import annotations

import json
from argparse import Namespace

from hitdet_nni.architecture import load_architecture
from hitdet_nni.commands.console import say, settings_of
from hitdet_nni.data.class_folders import open_folders
from hitdet_nni.engine import distributed
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.search_space import load_search_space
from hitdet_nni.settings import Settings, describe_lr
from hitdet_nni.training.classification import EpochAccuracy
from hitdet_nni.training.pretrain import Backbone, found_backbone, open_run, pretrain, weights_file


def pretrain_command(options: Namespace) -> None:
    """``pretrain``: train a backbone as a classifier and write its weights."""
    settings = settings_of(options)
    backbone = _backbone(options, settings)
    run = RunDirectory(options.out)
    pictures = open_folders(settings.pretrain)
    open_run(run, backbone, settings, force=options.force, resume=options.resume)

    speaks = distributed.is_main() and not options.json
    if speaks:
        recipe = settings.pretrain
        say(describe_lr(recipe.lr, recipe.batch_size, distributed.processes(), recipe.lr_batch_size))

    def say_epoch(record: EpochAccuracy) -> None:
        if speaks:
            numbers = f"loss {record.train_loss:.4g}  top-1 {record.val_top1:.3f}  top-5 {record.val_top5:.3f}"
            say(f"pretrain  epoch {record.epoch + 1}  {numbers}")

    with run.timed("pretrain"):
        result = pretrain(run, backbone, settings, pictures, say_epoch)
    if distributed.is_main():
        say(json.dumps(result, indent=2) if options.json else str(weights_file(run)))


def _backbone(options: Namespace, settings: Settings) -> Backbone:
    """What the options ask for: a found backbone, or one of the supernets."""
    if options.architecture is not None:
        return found_backbone(load_architecture(options.architecture))
    skeleton = settings.skeleton
    if options.component_screening and settings.screening.depths is not None:
        skeleton = skeleton.model_copy(update={"depths": settings.screening.depths})
    space = load_search_space(options.sub_spaces or settings.space)
    return Backbone(skeleton, tuple(space["backbone"]))
