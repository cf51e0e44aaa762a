"""``study sub-spaces``: what does a sub search space of each component's own contribute?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_studied_run, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings

HELP_ORDER = 40
HELP = "one sub search space for all components against one each (Table 4)"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study sub-spaces``."""
    add_studied_run(parser)
    add_study(parser)


def run(options: Namespace) -> Findings:
    """Retrain the found architecture and one searched in a sub-space that all components share (Table 4)."""
    from hitdet_nni.commands.shared.findings import open_searched, retrain_all
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.config.search_space import load_search_space
    from hitdet_nni.pipeline.search import search
    from hitdet_nni.runs.run_directory import RunDirectory
    from hitdet_nni.runs.sub_spaces import kept_sub_spaces
    from hitdet_nni.studies.sub_space_ablation import common_sub_space

    searched, settings, data = open_searched(options)
    keep = max(map(len, load_search_space(searched.require(searched.sub_spaces, "search")).values()))
    space = common_sub_space(searched, keep)
    own = RunDirectory(options.out / "one-sub-space")
    own.open(settings, resume=True)
    kept_sub_spaces(own, space)
    one = search(own, space, settings, data)
    found = load_architecture(searched.architecture)
    return retrain_all(options, settings, {"1 sub search space": one, "3 sub search spaces": found})
