"""``rungs.csv``: the losses of several trainings at the pauses after which ever fewer of them go on."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, write_csv


@dataclass(frozen=True)
class PausedTraining:
    """A training at a pause.

    Attributes:
        rung: Number of the pause, from 1 on.
        epochs: Epochs trained so far.
        architecture: Name of what is trained.
        loss: What it is judged by: the mean loss on training images of the last third of these epochs; infinite of a
            training that diverged.
        kept: Whether it goes on.
    """

    rung: int
    epochs: int
    architecture: str
    loss: float
    kept: bool


COLUMNS = tuple(field.name for field in fields(PausedTraining))


def write_rungs(path: Path, trainings: Sequence[PausedTraining]) -> None:
    """Write the trainings at each pause so far, at least one."""
    write_csv(
        path,
        list(COLUMNS),
        [{key: getattr(one, key) for key in COLUMNS} | {"kept": int(one.kept)} for one in trainings],
    )


def read_rungs(path: Path) -> tuple[PausedTraining, ...]:
    """Read the trainings at each pause, at least one.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    try:
        trainings = tuple(_training(row) for row in csv.DictReader(read_text(path).splitlines(), strict=True))
    except (csv.Error, ValueError, TypeError, KeyError):
        trainings = ()
    if not trainings:
        allowed = f"the columns {', '.join(COLUMNS)}, or the choice anew, without {path.parent}"
        raise InputError("is not a table of pauses", source=path, allowed=allowed)
    return trainings


def _training(row: Mapping[str, str]) -> PausedTraining:
    loss, kept = float(row["loss"]), row["kept"]
    if math.isnan(loss) or kept not in ("0", "1") or not row["architecture"]:
        raise ValueError("a value is missing")
    return PausedTraining(int(row["rung"]), int(row["epochs"]), row["architecture"], loss, kept == "1")
