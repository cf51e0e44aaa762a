"""What a command is given by its path: an architecture, or a trained detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE

if TYPE_CHECKING:
    from hitdet_nni.config.architecture import Architecture


def named_architecture(source: str) -> Architecture:
    """Return the architecture of a run directory, of an architecture JSON, or a shipped one.

    Args:
        source: The directory, the file, or the bare name.

    Raises:
        InputError: If there is none, or it is damaged.
    """
    from hitdet_nni.config.architecture import load_architecture

    return load_architecture(_architecture_file(source))


def trained_source(source: str, weights: Path | None) -> tuple[Architecture, Path]:
    """Return the architecture and the file of its weights: those of the run where none are named.

    Args:
        source: A run directory; with weights also an architecture JSON, or a shipped one's name.
        weights: Weights of a retraining.

    Raises:
        InputError: If one of them is missing or damaged.
    """
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.runs.run_directory import find_run

    file = _architecture_file(source)
    if weights is None:
        if not Path(source).is_dir():
            if file.suffix != ".json":
                raise InputError("is no architecture", source=source, allowed="a run, or an architecture JSON")
            raise InputError("is missing", key="--weights", allowed=f"{WEIGHTS_FILE} of a retraining")
        run = find_run(source)
        weights = run.require(run.retrain / WEIGHTS_FILE, "retrain")
    architecture = load_architecture(file)
    if not weights.is_file():
        raise InputError("no such file", source=weights, allowed=f"a file such as {WEIGHTS_FILE} of a retraining")
    return architecture, weights


def _architecture_file(source: str) -> Path:
    """Return the file of an architecture that is named as :func:`named_architecture` says."""
    from hitdet_nni.config.architecture import find_architecture
    from hitdet_nni.runs.run_directory import find_run

    if Path(source).is_dir():
        run = find_run(source)
        return run.require(run.architecture, "search")
    file = find_architecture(source)
    if not file.exists():
        raise InputError("no such run directory or file", source=source)
    return file
