"""What a command that trains ends with: what was found, where it lies, and the command that goes on from there."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.budget_settings import BudgetKey, BudgetSettings
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.space_costs import SpaceCosts
from hitdet_nni.engine import distributed
from hitdet_nni.runs.found import costs_of, found_line
from hitdet_nni.runs.run_directory import RunDirectory

USED_SHARE = 0.8
"""Share of a budget, or of what the dearest detector costs, below which the front may have a better one than found."""


def search_outcome(
    run: RunDirectory, architecture: Architecture, budget: BudgetSettings | None, config: Sequence[str]
) -> list[str]:
    """Return the lines that a search ends with.

    Args:
        run: The run of the search.
        architecture: What was found.
        budget: What it may cost, if that is bounded.
        config: The words of a command that give it the same config.
    """
    usable = 0.0 if budget is None else min(budget.limit, _largest(architecture, budget.key))
    goal = [*config, "--out", f"{run.path}-retrained"]
    lines = [
        found_line(architecture, budget),
        str(run.architecture),
        f"next: {_command('retrain', '--architecture', str(run.architecture), *goal, shared=True)}",
    ]
    if budget is not None and costs_of(architecture)[budget.key] < USED_SHARE * usable:
        within = ("--budget", f"{budget.limit:.15g}")
        lines += [
            f"or, to use more of the budget: {_command('front', str(run.path), *within, shared=True)}",
            f"and then: {_command('retrain', '--front', str(run.path), *within, *goal, shared=True)}",
        ]
    return lines


def _largest(architecture: Architecture, key: BudgetKey) -> float:
    """Return what the dearest detector of an architecture's space costs; infinity in milliseconds."""
    searched = architecture.provenance.space
    if key == "latency_ms" or searched is None:
        return math.inf
    space: SearchSpace = {component: searched[component] for component in COMPONENTS}
    costs = SpaceCosts(CostModel(architecture.skeleton, architecture.num_classes), space, key)
    return costs.largest / costs.unit.scale


def training_outcome(run: RunDirectory, result: Mapping[str, Any]) -> list[str]:
    """Return the lines that the training of any detector ends with.

    Args:
        run: Where it was trained.
        result: What ``metrics.json`` holds; of some baselines the cost could not be counted.
    """
    figures = [f"{name} {result['metrics'][name]:.3f}" for name in ("mAP", "mAP_50")]
    for key, unit in (("params_m", "M parameters"), ("gflops", "GFLOPs")):
        if result[key] is not None:
            figures.append(f"{result[key]:.3g} {unit}")
    return [", ".join(figures), str(run.metrics)]


def retraining_outcome(run: RunDirectory, result: Mapping[str, Any]) -> list[str]:
    """Return the lines that a retraining ends with; arguments are those of :func:`training_outcome`."""
    folder = str(run.path)
    return [
        *training_outcome(run, result),
        f"next: {_command('detect', folder, 'IMAGES', '--out', f'{folder}-detected')}",
        f"or: {_command('export', folder, '--format', 'onnx', '--out', f'{folder}.onnx')}",
    ]


def config_words(config: str | Path, overrides: Sequence[str]) -> list[str]:
    """Return the words of a command that give it the same config as this one."""
    return ["--config", str(config), *(word for override in overrides for word in ("--set", override))]


def _command(name: str, *words: str, shared: bool = False) -> str:
    """Return a command as a shell reads it; one that is ``shared`` starts as many processes as this one has done."""
    program = distributed.program() if shared else ["hitdet-nni"]
    return shlex.join([*program, name, *words])
