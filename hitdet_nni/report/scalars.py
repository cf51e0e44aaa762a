"""The curves of a run for TensorBoard, whose package writes the file (the extra ``tensorboard``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import whole_file
from hitdet_nni.report.precisions import AVERAGE_PRECISIONS
from hitdet_nni.runs.reading import Run, read_run

EVENTS = "events.out.tfevents.0.hitdet-nni"
"""Name of the file; TensorBoard wants the second and third part in it."""

INSTALL = "pip install 'hitdet-nni[tensorboard]'"


class Scalar(NamedTuple):
    """One point of a curve.

    Attributes:
        tag: The curve's name; slashes make groups of it.
        value: The number.
        step: Place on the horizontal axis, not negative.
    """

    tag: str
    value: float
    step: int


def is_available() -> bool:
    """Whether the package tensorboard is installed."""
    return find_spec("tensorboard") is not None


def require_tensorboard() -> None:
    """Refuse to go on without the package tensorboard.

    Raises:
        InputError: If it is not installed.
    """
    if not is_available():
        raise InputError("needs the package tensorboard", key="--tensorboard", allowed=f"after {INSTALL}")


def write_scalars(path: Path, folder: Path) -> Path:
    """Write the curves of a run as an event file, whole.

    Written again after more epochs, the file has its earlier events at the same places as before, so that a TensorBoard
    that is reading it goes on.

    Args:
        path: The run directory, in any state.
        folder: Where the file is written; it is made.

    Returns:
        The file.

    Raises:
        InputError: If it is not a run directory, a file in it is damaged, the file cannot be written, or the package
            tensorboard is not installed.
    """
    require_tensorboard()
    content = _event_file(read_run(path), (path / "config.yml").stat().st_mtime)
    out = folder / EVENTS
    try:
        with whole_file(out) as stream:
            stream.write(content)
    except WriteError as error:
        raise InputError(f"cannot be written ({error.reason})", source=out) from None
    return out


def _event_file(run: Run, wall_time: float) -> bytes:
    """Return the content of an event file; its points are as of a time in seconds since 1970."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # torch, and an extra of the package

    # The writer names its file by the clock and writes it piece by piece.
    with TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for scalar in scalars(run):
                writer.add_scalar(*scalar, walltime=wall_time)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def scalars(run: Run) -> Iterator[Scalar]:
    """Yield every number that a run has of each epoch, in the order of their making; steps are epochs from 1."""
    for component, scores in run.scores.items():
        for score in scores:
            yield Scalar(f"screening {component}/{score.operator}", score.score, score.epoch + 1)
    for row in run.metrics:
        for name, value in row.items():
            if name != "epoch":
                yield Scalar(f"search/{name}", value, int(row["epoch"]) + 1)
    losses = {math.ceil(place): value for place, value in run.training.losses}
    evaluations = dict(run.training.evaluations)
    for epoch in sorted({*losses, *evaluations}):
        if epoch in losses:
            yield Scalar("retrain/loss", losses[epoch], epoch)
        for name, value in evaluations.get(epoch, {}).items():
            if value >= 0:  # no box has the size otherwise
                yield Scalar(f"retrain/{AVERAGE_PRECISIONS.get(name, name)}", value, epoch)
