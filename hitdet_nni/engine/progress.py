"""How far a training is: told by what trains, heard by whoever shows it.

As with log records, the two do not know each other: stages tell, and nothing happens where nobody listens. Telling
draws no random number and changes nothing of a training.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

logger = logging.getLogger(__name__)

Doing = Literal["waiting", "training", "evaluating", "ended"]

PROGRESS_FILE = "progress.json"
"""Name of the file in a run directory by which a process that trains tells another one how far it is."""

WRITE_INTERVAL = 1.0
"""Seconds between two writings of such a file within an epoch."""

RECENT = 20
"""Steps that the rate and the loss within an epoch are means of."""


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        stage: Its name, e.g. ``"screening backbone"``.
        doing: What it is at.
        epoch: Finished epochs.
        epochs: Epochs of the stage; 0 where it has none.
        step: Finished steps of the running epoch.
        steps: Steps an epoch.
        rate: Steps a second; ``None`` until there were some.
        left: Seconds until the stage ends, without what is to come of a kind that has not been seen yet.
        loss: Mean loss of the last steps.
        results: What was measured at the end of the last epoch: ``loss``, ``val_loss``, ``gflops``, ``mAP``, ``top1``,
            ``seconds``, as far as the stage has them.
        who: Which one of several trainings it is; empty where there is only one.
    """

    stage: str
    doing: Doing = "training"
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    rate: float | None = None
    left: float | None = None
    loss: float | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    who: str = ""

    @property
    def share(self) -> float:
        """Finished part of the stage, 0 to 1."""
        if self.doing == "ended":
            return 1.0
        total = self.epochs * max(1, self.steps)
        return min(1.0, (self.epoch * max(1, self.steps) + self.step) / total) if total else 0.0


Listener = Callable[[Progress], None]

_listeners: list[Listener] = []
_names: list[str] = [""]


def tell(progress: Progress) -> None:
    """Tell all that listen."""
    for listener in _listeners:
        listener(progress)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener told while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def named(who: str) -> Iterator[None]:
    """Give the stages that are made within the context a ``who``."""
    _names.append(who)
    try:
        yield
    finally:
        _names.pop()


class Stage:
    """Tells of one stage as it goes on, and logs where it begins if that is not at its first step.

    Args:
        name: The stage's name.
        epochs: Its epochs.
        steps: Steps an epoch.
        epoch: Finished epochs, where it goes on from a checkpoint.
        step: Finished steps of the running epoch, where it does.
    """

    def __init__(self, name: str, epochs: int, steps: int, *, epoch: int = 0, step: int = 0) -> None:
        self._now = Progress(name, epochs=epochs, steps=steps, epoch=epoch, step=step, who=_names[-1])
        self._losses: deque[float] = deque(maxlen=RECENT)
        self._times: deque[float] = deque([time.monotonic()], maxlen=RECENT + 1)
        self._epoch_began = self._times[0]
        self._evaluation_began: float | None = None
        self._evaluations: list[float] = []  # seconds that each epoch spent behind its last step
        if epoch or step:
            place = f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"
            logger.info("%s: going on after %s/%d", f"{self._now.who} {name}".strip(), place, epochs)
        tell(self._now)

    def step(self, loss: float) -> None:
        """Tell that a step has ended."""
        self._times.append(time.monotonic())
        self._losses.append(loss)
        mean = sum(self._losses) / len(self._losses)
        self._tell(doing="training", step=self._now.step + 1, loss=mean, rate=self._rate())

    def evaluate(self) -> None:
        """Tell that what follows an epoch's last step, or comes before the first one, has begun."""
        self._evaluation_began = time.monotonic()
        self._tell(doing="evaluating")

    def end_epoch(self, results: Mapping[str, float], *, first: bool = False, last: bool = False) -> None:
        """Tell that an epoch and its evaluation have ended.

        Args:
            results: What was measured, by the names of :class:`Progress`; ``seconds`` is the epoch's time by default.
            first: What has ended is an evaluation before the first epoch.
            last: The stage ends with it, before all its epochs.
        """
        now = time.monotonic()
        if self._evaluation_began is not None and not first:
            self._evaluations.append(now - self._evaluation_began)
        epoch = self._now.epoch + (0 if first else 1)
        results = {"seconds": now - self._epoch_began, **results}
        self._evaluation_began, self._epoch_began = None, now
        self._times.clear()
        self._times.append(now)
        doing: Doing = "ended" if last or epoch >= self._now.epochs else "training"
        self._tell(doing=doing, epoch=epoch, step=0, results=results)

    def _rate(self) -> float | None:
        """Return the steps a second of the epoch's last steps; until there are two, what was known before."""
        spent = self._times[-1] - self._times[0]
        if len(self._times) < 3 and self._now.rate is not None:
            return self._now.rate
        return (len(self._times) - 1) / spent if spent > 0 else self._now.rate

    def _tell(self, **changes: Any) -> None:
        now = replace(self._now, **changes)
        left = None
        if now.rate:
            epochs = now.epochs - now.epoch
            evaluation = sum(self._evaluations) / len(self._evaluations) if self._evaluations else 0.0
            left = max(0, epochs * now.steps - now.step) / now.rate + epochs * evaluation
        self._now = replace(now, left=left)
        tell(self._now)


class ProgressFile:
    """A listener that keeps a file for another process, which :func:`read_progress` reads.

    The file is for people who watch; where it cannot be written nothing is shown, and the training goes on.

    Args:
        path: The file; its folder is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0.0
        self._last: tuple[object, ...] = ()

    def __call__(self, progress: Progress) -> None:
        """Write it, if it says more than the next step or is old."""
        kind = (progress.who, progress.stage, progress.doing, progress.epoch)
        if kind == self._last and time.monotonic() - self._written < WRITE_INTERVAL:
            return
        temporary = self.path.with_name(f".{self.path.name}")
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
            temporary.replace(self.path)
        self._written, self._last = time.monotonic(), kind

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Keep :data:`PROGRESS_FILE` in a folder while the context lasts."""
    file = ProgressFile(folder / PROGRESS_FILE)
    try:
        with listening(file):
            yield
    finally:
        file.remove()


def read_progress(path: Path) -> Progress | None:
    """Read what a file tells; ``None`` where there is none, or it is not of :class:`ProgressFile`."""
    try:
        found = Progress(**json.loads(path.read_text(encoding="utf-8")))
        return found if found.doing in get_args(Doing) and found.share >= 0 else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
