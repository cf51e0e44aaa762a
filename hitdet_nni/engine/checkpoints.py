"""Checkpoints of a training stage: written whole, found damaged where they are, loaded without executing anything."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hitdet_nni.io import writing

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(?P<step>\d{9})(?:\.(?P<again>\d+))?-(?P<digest>[0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class CheckpointFolder:
    """The last few checkpoints of one stage.

    A checkpoint's name holds the number of finished steps, how often that step had been saved before (unless never),
    and a digest of the content: which is the newest does not depend on a clock, and a file that was cut short or
    altered is known by reading it, so that the one before it can be used.

    Attributes:
        path: The folder; made when the first checkpoint is saved.
        keep: How many checkpoints stay; at least 2, so that there is one before the last.
    """

    path: Path
    keep: int = 2

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically; of those before it ``keep - 1`` stay, and none of later steps.

        A training is at an earlier step than a file of its folder only where it could not go on from that file.

        What cannot be loaded again safely is refused here rather than when it is needed.

        Args:
            step: Finished steps; orders the checkpoints. A second checkpoint of one step replaces the first.
            state: Tensors, numbers, strings, lists, tuples and dicts: what ``torch.load(weights_only=True)`` reads.

        Returns:
            The file.

        Raises:
            TypeError: If the state holds anything else.
            WriteError: If it cannot be written; the checkpoints before it are as they were.
        """
        plain = plain_state(state)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            files = self.files()
            replaced = [other for other in files if _order(other)[0] == step]
            again = f".{_order(replaced[-1])[1] + 1}" if replaced else ""
            handle, name = tempfile.mkstemp(dir=self.path, prefix=".saving-")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as stream:
                    torch.save(plain, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                file = self.path / f"step-{step:09d}{again}-{_digest(temporary)}.pt"
                temporary.replace(file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            kept = [other for other in files if _order(other)[0] < step][1 - self.keep :]
            for other in [*(set(files) - {*kept, file}), *self.path.glob(".saving-*")]:
                other.unlink(missing_ok=True)
        return file

    def files(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        files = (file for file in self.path.glob("step-*.pt") if _NAME.fullmatch(file.name) and file.is_file())
        return sorted(files, key=_order)

    def load(self) -> dict[str, Any] | None:
        """Return the state of the newest checkpoint that is whole; ``None`` where there is none.

        A damaged one is named in a warning and passed over.
        """
        for file in reversed(self.files()):
            # Not ours after all, or of another version: zip, pickle and torch have no common exception for that.
            with suppress(Exception):
                if _digest(file) == file.stem[-16:]:
                    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                    return state
            logger.warning("checkpoint %s is cut short or damaged: going on from the one before it", file)
        return None

    def clear(self, *, but_newest: bool = False) -> None:
        """Remove all checkpoints: the stage has ended and its result is written.

        Args:
            but_newest: Keep the newest: the stage pauses, perhaps for ever, and others do as well.
        """
        if but_newest:
            for file in self.files()[:-1]:
                file.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def plain_state(value: Any) -> Any:
    """Return the same value of exactly the types that a safe load knows (NNI's labels are a subclass of str).

    Raises:
        TypeError: If it holds anything else.
    """
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {plain_state(key): plain_state(content) for key, content in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain_state, value))
    if isinstance(value, list):
        return list(map(plain_state, value))
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _order(file: Path) -> tuple[int, int]:
    """Return the finished steps, and how often they had been saved before."""
    found = _NAME.fullmatch(file.name)
    if found is None:
        raise ValueError(f"{file} is not named as a checkpoint")
    return int(found["step"]), int(found["again"] or 0)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest is not in Python 3.10
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
