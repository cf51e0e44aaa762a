"""Checkpoints of a training stage: written whole, found damaged where they are, loaded without executing anything."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class CheckpointFolder:
    """The last few checkpoints of one stage.

    A checkpoint's name holds the number of finished steps and a digest of its content, so that a file that was cut
    short or altered is known by reading it, and the one before it can be used.

    Attributes:
        path: The folder; made when the first checkpoint is saved.
        keep: How many checkpoints stay; at least 2, so that there is one before the last.
    """

    path: Path
    keep: int = 2

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically and remove those beyond the last ``keep``.

        What cannot be loaded again safely is refused here rather than when it is needed.

        Args:
            step: Finished steps; orders the checkpoints. A second checkpoint of one step replaces the first.
            state: Tensors, numbers, strings, lists, tuples and dicts: what ``torch.load(weights_only=True)`` reads.

        Returns:
            The file.

        Raises:
            TypeError: If the state holds anything else.
        """
        plain = plain_state(state)
        self.path.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path, prefix=".saving-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                torch.save(plain, stream)
                stream.flush()
                os.fsync(stream.fileno())
            file = self.path / f"step-{step:09d}-{_digest(temporary)}.pt"
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        files = self.files()
        replaced = [other for other in files if other != file and _step(other) == step]
        kept = [other for other in files if other not in replaced]
        for other in [*replaced, *kept[: -self.keep], *self.path.glob(".saving-*")]:
            other.unlink(missing_ok=True)
        return file

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((file for file in self.path.glob("step-*.pt") if _NAME.fullmatch(file.name)), key=_order)

    def load(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole; ``None`` where there is none.

        A damaged one is named in a warning and passed over.
        """
        for file in reversed(self.files()):
            if _digest(file) == file.stem[-16:]:
                # Not ours after all, or of another version: zip, pickle and torch have no common exception for that.
                with suppress(Exception):
                    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                    return state
            logger.warning("checkpoint %s is cut short or damaged: going on from the one before it", file)
        return None

    def clear(self) -> None:
        """Remove all checkpoints: the stage has ended and its result is written."""
        shutil.rmtree(self.path, ignore_errors=True)


def plain_state(value: Any) -> Any:
    """The same value of exactly the types that a safe load knows (NNI's labels, for one, are a subclass of str)."""
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


def _step(file: Path) -> int:
    return int(file.name[5:14])


def _order(file: Path) -> tuple[int, float]:
    return _step(file), file.stat().st_mtime


def _digest(file: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest is not in Python 3.10
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def random_state() -> dict[str, Any]:
    """States of python's, numpy's and torch's random number generators, as plain numbers and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
