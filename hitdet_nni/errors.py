"""The exception that means "the user can mend this", and those of work that had begun and cannot go on."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path


def printable(text: str) -> str:
    """Return the text with what no encoding can hold, such as the bytes of a Latin-1 file name, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_unprintable() -> None:
    """Have whatever the terminal's encoding does not hold written as escapes, instead of failing at it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class InputError(ValueError):
    """Bad input: a file, key or value that a user gave.

    Its text is one line that names the source, the key, the offending value and what is allowed; the command
    line prints it without a traceback and exits with status 2.

    Args:
        problem: What is wrong, e.g. ``"unknown operator 'ir_k9'"``.
        source: The file (or option) that holds the value.
        key: Dotted path of the value inside the source.
        allowed: What would be accepted: a sentence, or the accepted values.
    """

    def __init__(
        self,
        problem: str,
        *,
        source: str | Path | None = None,
        key: str | None = None,
        allowed: str | Iterable[object] | None = None,
    ) -> None:
        self.problem = problem
        self.source = None if source is None else str(source)
        self.key = key
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(str(a) for a in allowed)
        where = [part for part in (self.source, self.key) if part]
        text = ": ".join([*where, problem])
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        super().__init__(printable(" ".join(text.split())))


class StoppedError(RuntimeError):
    """Work that had begun cannot go on, though nothing that a user gave is bad.

    Its text is one line; the command line prints it without a traceback and exits with status 1.
    """


class WriteError(StoppedError):
    """A file cannot be written: a full disk, a folder that is read-only or gone.

    Args:
        path: The file or folder.
        reason: What the system says, e.g. ``"No space left on device"``.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(
            f"{path}: cannot be written ({reason}); what was written before is whole, and --resume goes on from there"
        )

    def __reduce__(self) -> tuple[type[WriteError], tuple[str, str]]:
        """Return how another process gets it."""
        return type(self), (self.path, self.reason)


class LostProcessError(StoppedError):
    """Another process of a training by several has ended; it, or what started it, has said why."""

    def __init__(self) -> None:
        super().__init__("another process of this training has ended")


class LostWorkerError(StoppedError):
    """A process that loads images has ended by itself, most often because memory was short.

    Args:
        problem: What torch says of it, e.g. ``"DataLoader worker (pid 12) is killed by signal: Killed"``.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{problem}; if memory is short, fewer data.workers or a smaller data.cache_mb may help; "
            "what was written before is whole, and --resume goes on from there"
        )

    def __reduce__(self) -> tuple[type[LostWorkerError], tuple[str]]:
        """Return how another process gets it."""
        return type(self), (self.problem,)


class NonFiniteLossError(StoppedError):
    """A loss or a parameter became NaN or infinite: the training cannot go on.

    Args:
        stage: The stage that was trained, e.g. ``"search"``.
        step: Steps finished before, over all epochs; ``None`` where that is not known.
        image_ids: Ids, or files, of the images of the batch; none where it was not a batch's loss.
        checkpoint: The last good checkpoint, if there is one.
        what: What is not finite.
    """

    def __init__(
        self,
        stage: str,
        step: int | None,
        image_ids: Iterable[int | str],
        checkpoint: Path | None,
        what: str = "the loss is not finite",
    ) -> None:
        self.stage = stage
        self.step = step
        self.image_ids = tuple(image_ids)
        self.checkpoint = checkpoint
        self.what = what
        images = ", ".join(map(str, self.image_ids))
        where = ""
        if step is not None:
            where = f" in step {step + 1} on the images {images}" if images else f" after step {step}"
        good = "no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        super().__init__(f"{stage}: {what}{where}; {good}; a smaller learning rate or grad_clip may help")

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[object, ...]]:
        """Return how another process gets it."""
        return type(self), (self.stage, self.step, self.image_ids, self.checkpoint, self.what)
