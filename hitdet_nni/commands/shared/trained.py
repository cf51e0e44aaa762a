"""A trained detector that a command is given: a run, or an architecture and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE

if TYPE_CHECKING:
    from hitdet_nni.config.architecture import Architecture


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

    if Path(source).is_dir():
        run = find_run(source)
        architecture, weights = load_architecture(run.architecture), weights or run.retrain / WEIGHTS_FILE
    elif weights is None:
        raise InputError("is missing", key="--weights", allowed=f"{WEIGHTS_FILE} of a retraining")
    else:
        architecture = load_architecture(source)
    if not weights.is_file():
        raise InputError("no such file", source=weights, allowed=f"a file such as {WEIGHTS_FILE} of a retraining")
    return architecture, weights
