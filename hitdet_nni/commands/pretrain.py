"""``pretrain``: the weights that a supernet's or a found detector's backbone starts from."""

from __future__ import annotations

import json
from argparse import Namespace

from hitdet_nni.commands.console import say, settings_of
from hitdet_nni.commands.work import at_work, load_libraries
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.data.class_folders import open_folders
from hitdet_nni.runs.run_directory import RunDirectory


def pretrain_command(options: Namespace) -> None:
    """``pretrain``: train a backbone as a classifier and write its weights."""
    settings = settings_of(options)
    found: Architecture | None = None
    operators: list[str] = []
    if options.architecture is not None:
        found = load_architecture(options.architecture)
    else:
        operators = load_search_space(options.sub_spaces or settings.space)["backbone"]
    run = RunDirectory(options.out)
    with at_work(options, options.config) as view:
        pictures = open_folders(settings.pretrain)
        load_libraries(view, settings)
        from hitdet_nni.training.pretrain import Backbone, found_backbone, open_run, pretrain, weights_file

        skeleton = settings.skeleton
        if options.component_screening and settings.screening.depths is not None:
            skeleton = skeleton.model_copy(update={"depths": settings.screening.depths})
        backbone = Backbone(skeleton, tuple(operators)) if found is None else found_backbone(found)
        open_run(run, backbone, settings, force=options.force, resume=options.resume)
        with run.timed("pretrain"):
            result = pretrain(run, backbone, settings, pictures)
    say(json.dumps(result, indent=2) if options.json else str(weights_file(run)))
