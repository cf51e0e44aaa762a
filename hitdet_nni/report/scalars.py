"""The curves of a run for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import whole_file
from hitdet_nni.report.event_file import Scalar, event_file
from hitdet_nni.report.precisions import AVERAGE_PRECISIONS
from hitdet_nni.report.reading import Run, read_run

EVENTS = "events.out.tfevents.0.hitdet-nni"
"""Name of the file; TensorBoard wants the second and third part in it."""


def write_scalars(path: Path, folder: Path) -> Path:
    """Write the curves of a run as an event file, whole.

    Written again after more epochs, the file begins as it did before, so that a TensorBoard that is reading it goes on.

    Args:
        path: The run directory, in any state.
        folder: Where the file is written; it is made.

    Returns:
        The file.

    Raises:
        InputError: If it is not a run directory, a file in it is damaged, or the file cannot be written.
    """
    run = read_run(path)
    out = folder / EVENTS
    try:
        with whole_file(out) as stream:
            stream.write(event_file(scalars(run), (path / "config.yml").stat().st_mtime))
    except WriteError as error:
        raise InputError(f"cannot be written ({error.reason})", source=out) from None
    return out


def scalars(run: Run) -> Iterator[Scalar]:
    """Every number that a run has of each epoch, in the order in which they were made; steps are epochs from 1."""
    for component, scores in run.scores.items():
        for score in scores:
            yield Scalar(f"screening {component}/{score.operator}", score.epoch + 1, score.score)
    for row in run.metrics:
        for name, value in row.items():
            if name != "epoch":
                yield Scalar(f"search/{name}", int(row["epoch"]) + 1, value)
    losses = {math.ceil(place): value for place, value in run.training.losses}
    evaluations = dict(run.training.evaluations)
    for epoch in sorted({*losses, *evaluations}):
        if epoch in losses:
            yield Scalar("retrain/loss", epoch, losses[epoch])
        for name, value in evaluations.get(epoch, {}).items():
            if value >= 0:  # no box has the size otherwise
                yield Scalar(f"retrain/{AVERAGE_PRECISIONS.get(name, name)}", epoch, value)
