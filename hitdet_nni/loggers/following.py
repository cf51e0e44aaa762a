"""A logger follows a run: after every epoch it is sent what is new in the run directory, at the end the files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict

from hitdet_nni.config.settings import Logger, Settings
from hitdet_nni.config.validation import validated
from hitdet_nni.engine import distributed
from hitdet_nni.engine.progress import Progress, listening
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.errors import StoppedError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.loggers.destination import Destination
from hitdet_nni.loggers.mlflow_store import MLflow
from hitdet_nni.loggers.scalars import scalars
from hitdet_nni.loggers.tensorboard import TensorBoard
from hitdet_nni.loggers.wandb_folder import WandB
from hitdet_nni.report.config_view import flat_settings
from hitdet_nni.report.page import write_report
from hitdet_nni.runs.reading import read_run
from hitdet_nni.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


class Published(BaseModel):
    """``logger.json``: what a logger has of a run, so that a later stage or call adds to the same run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    logger: Logger
    identity: str
    steps: dict[str, int]


@contextmanager
def followed(run: RunDirectory, settings: Settings) -> Iterator[None]:
    """Send the curves of a run to the logger of its settings while the context lasts, and files when it has ended well.

    The main process does so. A logger that fails is told in a line and left alone: the work goes on without it.

    Args:
        run: The run directory, which has been opened.
        settings: The run's settings.

    Raises:
        StoppedError: If the logger cannot begin.
    """
    if settings.logger is None or not distributed.is_main():
        yield
        return
    follower = Follower(run, settings.logger, settings)
    finished = False
    try:
        with listening(follower):
            yield
        finished = True
    finally:
        follower.end(finished=finished)


class Follower:
    """A listener of the progress that sends a run's new points to a logger.

    Args:
        run: The run directory.
        kind: The logger.
        settings: The run's settings.

    Raises:
        StoppedError: If the logger cannot begin.
    """

    def __init__(self, run: RunDirectory, kind: Logger, settings: Settings) -> None:
        self._run, self._kind, self._file = run, kind, run.path / "logger.json"
        earlier = validated(Published, self._file, read_json(self._file)) if self._file.is_file() else None
        if earlier is not None and earlier.logger != kind:
            earlier = None
        try:
            with fork_rng():  # what a logger draws must not change the training
                self._destination: Destination = _begin(run, kind, settings, earlier.identity if earlier else None)
        except Exception as error:
            raise StoppedError(f"{kind} cannot begin: {_first_line(error)}") from error
        same = earlier is not None and earlier.identity == self._destination.identity
        self._steps = dict(earlier.steps) if earlier is not None and same else {}
        self._works = True
        self._finished: dict[str, int] = {}
        log.info("%s: %s", kind, self._destination.where)

    def __call__(self, progress: Progress) -> None:
        """Send what is new if an epoch has ended; the trainings among which another one chooses are not the run's."""
        if progress.who:
            return
        self._finished[progress.stage] = progress.epoch
        if progress.results and progress.step == 0:
            self._attempt(self._publish)

    def end(self, *, finished: bool) -> None:
        """Send what is left, and with the stage at its end page, config and architecture; close the run."""
        self._attempt(self._publish)
        if finished:
            self._attempt(self._keep)
        self._attempt(lambda: self._destination.end(finished=finished))

    def _publish(self) -> None:
        # What an epoch that has not ended has logged so far is not its loss.
        points = [
            one
            for one in scalars(read_run(self._run.path))
            if self._steps.get(one.tag, -1) < one.step <= self._finished.get(one.group, one.step)
        ]
        if points:
            self._destination.publish(points)
            for one in points:
                self._steps[one.tag] = max(one.step, self._steps.get(one.tag, -1))
        content = Published(logger=self._kind, identity=self._destination.identity, steps=self._steps)
        write_json(self._file, content.model_dump())

    def _keep(self) -> None:
        page = write_report(self._run.path)
        files = (page, self._run.config, self._run.architecture, self._run.metrics)
        self._destination.keep([file for file in files if file.is_file()])

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do something with the logger; where it fails, say so once and do nothing more with it."""
        if not self._works:
            return
        try:
            with fork_rng():
                action()
        except Exception as error:
            self._works = False
            log.warning("%s has failed and gets nothing more: %s", self._kind, _first_line(error))


def _begin(run: RunDirectory, kind: Logger, settings: Settings, identity: str | None) -> Destination:
    if kind == "tensorboard":
        return TensorBoard(run)
    known = dict(flat_settings(settings))
    return (MLflow if kind == "mlflow" else WandB)(run, known, identity)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
