"""``study parts``: what does each searched part contribute?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_studied_run, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings

HELP_ORDER = 50
HELP = "each searched part alone in the baseline (Table 5)"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study parts``."""
    add_studied_run(parser)
    add_study(parser)


def run(options: Namespace) -> Findings:
    """Retrain the baseline with each searched part alone (Table 5)."""
    from hitdet_nni.commands.shared.findings import open_searched, retrain_all
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.studies.part_ablation import part_architectures

    searched, settings, data = open_searched(options)
    return retrain_all(options, settings, part_architectures(load_architecture(searched.architecture), settings, data))
