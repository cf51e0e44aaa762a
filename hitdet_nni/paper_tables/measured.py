"""Accuracies that a run directory supplies for a row of the paper's tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.errors import InputError
from hitdet_nni.paper_tables.tables import Accuracy, Row, RowComparison
from hitdet_nni.runs.result import PRECISIONS, read_result
from hitdet_nni.runs.run_directory import find_run

_NAMES: dict[str, Accuracy] = dict(zip(PRECISIONS, get_args(Accuracy), strict=True))


@dataclass(frozen=True)
class MeasuredRun:
    """What a retraining measured.

    Attributes:
        run: The run directory.
        architecture: What was trained; ``None`` where it was a baseline.
        baseline: Name of the baseline that was trained, if it was one.
        accuracy: COCO's average precisions, percent; those without boxes are left out.
        images: What they were measured on.
    """

    run: Path
    architecture: Architecture | None
    baseline: str | None
    accuracy: dict[Accuracy, float]
    images: str


def load_measured(path: Path) -> MeasuredRun:
    """Read the accuracies of a finished run.

    Raises:
        InputError: If it is not a run directory, or its detector has not been retrained.
    """
    run = find_run(path)
    result = read_result(run.metrics)
    missing = [ours for ours in _NAMES if ours not in result.metrics]
    if missing:
        raise InputError("missing", source=run.metrics, key=f"metrics.{missing[0]}")
    data = load_settings(run.config).data
    images = f"the embedded {data.builtin}" if data.builtin is not None else str(data.val_ann or data.root)
    accuracy = {name: 100 * value for ours, name in _NAMES.items() if (value := result.metrics[ours]) >= 0}
    architecture = load_architecture(run.architecture) if result.baseline is None else None
    return MeasuredRun(path, architecture, result.baseline, accuracy, images)


def add_measured(comparisons: Sequence[RowComparison], runs: Sequence[MeasuredRun]) -> list[RowComparison]:
    """Put a line behind each row whose very architecture, or baseline, a run has trained; others change nothing."""
    lines = []
    for comparison in comparisons:
        lines.append(comparison)
        for run in runs:
            if not comparison.beside and _is_of(run, comparison.row):
                remark = f"measured by the run {run.run} on {run.images}"
                lines.append(dataclasses.replace(comparison, remark=remark, measured=run.accuracy, beside=str(run.run)))
    return lines


def _is_of(run: MeasuredRun, row: Row) -> bool:
    if row.architecture is None or run.architecture is None:
        return row.baseline is not None and row.baseline == run.baseline
    shipped = load_architecture(row.architecture)
    return (run.architecture.sample, run.architecture.skeleton) == (shipped.sample, shipped.skeleton)
