"""Weights files: a detector's state and nothing else, written whole, read without executing anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE, whole_file


def save_weights(module: nn.Module, path: Path) -> None:
    """Save a module's state and nothing else, atomically.

    Raises:
        WriteError: If the file cannot be written.
    """
    save_state(module.state_dict(), path)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Save a state, atomically.

    Raises:
        WriteError: If the file cannot be written.
    """
    with whole_file(path) as stream:
        torch.save({"state_dict": dict(state)}, stream)


def name_of_weights(path: Path) -> str:
    """Return what a checkpoint calls weights that a training starts from: the file's name, and its content's digest."""
    return f"the weights of {path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def read_state(path: Path, *, allowed: str = f"a file such as {WEIGHTS_FILE} of a retraining") -> dict[str, Any]:
    """Return the ``state_dict`` of a file; as :func:`read_content`."""
    state: dict[str, Any] = read_content(path, allowed=allowed)["state_dict"]
    return state


def read_content(path: Path, *, allowed: str) -> dict[str, Any]:
    """Return everything in a file that has a ``state_dict``. Nothing in the file is executed.

    Args:
        path: The file.
        allowed: What the error says that would be accepted.

    Raises:
        InputError: If the file is missing or does not hold a state.
    """
    content = read_saved(path, allowed=allowed)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError("has no state_dict", source=path, allowed=allowed)
    return content


def read_saved(path: Path, *, allowed: str) -> Any:
    """Return what torch has saved in a file, whatever it is; as :func:`read_content`.

    Raises:
        InputError: If the file is missing or torch cannot read it without executing anything.
    """
    if not path.is_file():
        raise InputError("no such file", source=path, allowed=allowed)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have no common exception for a broken file
        problem = str(error).partition("\n")[0] or type(error).__name__
        if "weights_only" in problem:  # torch goes on to say how to execute what is in the file
            problem = "it is damaged, of another kind, or holds more than tensors"
        raise InputError(f"cannot be read as weights: {problem}", source=path, allowed=allowed) from None


def load_weights(detector: nn.Module, path: Path) -> None:
    """Load weights into a detector; all must be there with their shapes. Nothing in the file is executed.

    Raises:
        InputError: If the file is missing, does not hold weights, or holds those of another architecture.
    """
    state = read_state(path)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split()[:30])
        raise InputError(f"does not fit the architecture: {problem} ...", source=path) from None
