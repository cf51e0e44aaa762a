"""The curves of a run, read off its directory: what every logger is sent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from hitdet_nni.report.precisions import AVERAGE_PRECISIONS
from hitdet_nni.runs.reading import Run


class Scalar(NamedTuple):
    """One point of a curve.

    Attributes:
        group: What the curve is of: a screening, the search, the retraining.
        name: What is measured.
        value: The number.
        step: Place on the horizontal axis, not negative.
    """

    group: str
    name: str
    value: float
    step: int

    @property
    def tag(self) -> str:
        """The curve's name: group and name with a slash between them."""
        return f"{self.group}/{self.name}"


def scalars(run: Run) -> Iterator[Scalar]:
    """Yield every number that a run has of each epoch, in the order of their making; steps are epochs from 1."""
    for component, scores in run.scores.items():
        for score in scores:
            yield Scalar(f"screening {component}", score.operator, score.score, score.epoch + 1)
    for row in run.metrics:
        for name, value in row.items():
            if name != "epoch":
                yield Scalar("search", name, value, int(row["epoch"]) + 1)
    losses = {math.ceil(place): value for place, value in run.training.losses}
    evaluations = dict(run.training.evaluations)
    for epoch in sorted({*losses, *evaluations}):
        if epoch in losses:
            yield Scalar("retrain", "loss", losses[epoch], epoch)
        for name, value in evaluations.get(epoch, {}).items():
            if value >= 0:  # no box has the size otherwise
                yield Scalar("retrain", AVERAGE_PRECISIONS.get(name, name), value, epoch)
