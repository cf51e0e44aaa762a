"""The curves of a run for TensorBoard, whose package writes the file (the extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import whole_file
from hitdet_nni.loggers.destination import Destination
from hitdet_nni.loggers.packages import require_package
from hitdet_nni.loggers.scalars import Scalar, scalars
from hitdet_nni.runs.reading import Run, read_run
from hitdet_nni.runs.run_directory import RunDirectory

EVENTS = "events.out.tfevents.0.hitdet-nni"
"""Name of the file; TensorBoard wants the second and third part in it."""


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
    require_package("tensorboard", "--tensorboard")
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
                writer.add_scalar(scalar.tag, scalar.value, scalar.step, walltime=wall_time)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


class TensorBoard(Destination):
    """The folder ``tensorboard`` of the run directory, written anew with every epoch.

    Args:
        run: The run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._folder = run.path / "tensorboard"
        self.identity = ""
        self.where = str(self._folder)

    def publish(self, points: Sequence[Scalar]) -> None:
        """Write all curves of the run, those new points among them."""
        write_scalars(self._run.path, self._folder)

    def keep(self, files: Sequence[Path]) -> None:
        """Do nothing: the files lie beside the folder."""

    def end(self, *, finished: bool) -> None:
        """Do nothing: the file is whole."""
