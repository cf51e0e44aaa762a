"""The architectures that a retraining's was chosen among by trainings that pause, as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hitdet_nni.report.axes import number
from hitdet_nni.runs.rungs import PausedTraining


@dataclass(frozen=True)
class CandidateRow:
    """An architecture, and how far it came.

    Attributes:
        name: Its name.
        losses: Its loss at each pause as text, a dash where it did not come to it.
        outcome: What became of it.
        chosen: Whether it was trained to the end.
    """

    name: str
    losses: tuple[str, ...]
    outcome: str
    chosen: bool


@dataclass(frozen=True)
class CandidateTable:
    """Candidates, the best first.

    Attributes:
        pauses: Epochs after which trainings paused.
        rows: The candidates.
    """

    pauses: tuple[int, ...]
    rows: tuple[CandidateRow, ...]


def candidate_table(trainings: Sequence[PausedTraining]) -> CandidateTable | None:
    """Return the candidates of a choice, ``None`` where there are none.

    Args:
        trainings: All of them at each of their pauses, the best of a pause first.
    """
    if not trainings:
        return None
    pauses = tuple(sorted({one.epochs for one in trainings}))
    # Of who came equally far, and that is said by the last pause, the better stands first.
    last = {one.architecture: one for one in trainings}
    names = sorted(last, key=lambda name: (-last[name].epochs, last[name].loss))
    return CandidateTable(pauses, tuple(_row(last[name], pauses, trainings) for name in names))


def _row(last: PausedTraining, pauses: Sequence[int], trainings: Sequence[PausedTraining]) -> CandidateRow:
    losses = {one.epochs: one.loss for one in trainings if one.architecture == last.architecture}
    words = {epochs: number(loss) if math.isfinite(loss) else "diverged" for epochs, loss in losses.items()}
    outcome = "goes on to the end" if last.kept else f"out after epoch {last.epochs}"
    return CandidateRow(last.architecture, tuple(words.get(each, "–") for each in pauses), outcome, last.kept)
