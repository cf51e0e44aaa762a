"""Removal of operators while a supernet is screened (section 3.2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.nas.choices import Choice, ColumnGroup

logger = logging.getLogger(__name__)

RankBy = Literal["probability", "norm"]


@dataclass(frozen=True)
class PruningSchedule:
    """How many operators screening leaves active, and by what it ranks them.

    Attributes:
        keep: Operators left of each component at the end (N_b, N_n, N_h). In other model spaces one number for all
            layers, or one for each group of layers with the same candidates, by the label of its first layer.
        rank_by: ``"probability"`` sums the weight in the mixture over a component's layers; ``"norm"`` is the column
            norm of Eq. 4, which also ranks a column of very negative parameters high.
    """

    keep: Mapping[str, int] | int
    rank_by: RankBy = "probability"

    def remaining(self, title: str, start: int, epoch: int, warmup_epochs: int, epochs: int) -> int:
        """Return the operators left at the end of an epoch: constant in warm-up, then an even descent to ``keep``.

        Args:
            title: The component screened, or the title of another group of layers.
            start: Operators at the outset.
            epoch: The epoch that ends, from 0.
            warmup_epochs: Epochs before the architecture parameters move.
            epochs: Epochs in all.
        """
        keep = min(self.keep if isinstance(self.keep, int) else self.keep[title], start)
        progress = max(0, epoch + 1 - warmup_epochs) / (epochs - warmup_epochs)
        return start - math.floor((start - keep) * min(1.0, progress) + 1e-9)


def removable(groups: Iterable[ColumnGroup]) -> list[ColumnGroup]:
    """Return the groups whose operators can be removed: those of layer choices, not those of cells."""
    return [group for group in groups if group.removable]


def check_removal(pruning: PruningSchedule, choices: Sequence[Choice], groups: Sequence[ColumnGroup]) -> None:
    """Refuse a removal that the space does not allow, and name in one line of the log what it leaves alone.

    Raises:
        InputError: If no layer has candidates to remove, or the schedule has no number for one, or less than 1.
    """
    source, titles = "ColumnSparseDARTS", [group.title for group in removable(groups)]
    if not titles:
        problem = "the model space has no LayerChoice, and operators are removed from nothing else"
        raise InputError(problem, source=source, key="pruning", allowed="None")
    missing = [] if isinstance(pruning.keep, int) else [title for title in titles if title not in pruning.keep]
    if missing:
        allowed = f"one number for all layers, or one for each of {', '.join(titles)}"
        raise InputError(f"no number for {missing[0]}", source=source, key="pruning.keep", allowed=allowed)
    least = pruning.keep if isinstance(pruning.keep, int) else min(pruning.keep.values())
    if least < 1:
        raise InputError(f"got {least}", source=source, key="pruning.keep", allowed="1 or more")
    others = [choice.label for choice in choices if not choice.removable]
    if others and distributed.is_main():
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        logger.warning("operators are removed from LayerChoice only; what %s can choose stays", shown)


def check_epochs(warmup_epochs: float, epochs: int | None, *, removes: bool) -> None:
    """Refuse a training that is over before anything is searched.

    Args:
        warmup_epochs: Epochs before the architecture parameters move.
        epochs: Epochs in all, as Lightning's trainer has them: -1 or ``None`` where it counts steps.
        removes: Whether operators are removed at the ends of epochs, so that their number has to be known.

    Raises:
        InputError: If there are no epochs after warm-up, or their number is not known where it has to be.
    """
    if not removes and epochs in (None, -1):
        return
    if epochs is None or epochs <= warmup_epochs:
        reason = "operators are removed at the ends of epochs" if removes else "until then nothing is searched"
        allowed = f"max_epochs above warmup_epochs, {warmup_epochs:g}: {reason}"
        raise InputError(f"got {epochs}", source="ColumnSparseDARTS", key="max_epochs", allowed=allowed)


def operator_scores(group: ColumnGroup, rank_by: RankBy = "probability") -> dict[Hashable, float]:
    """Return the score of each active operator of a group; the larger, the better."""
    columns: dict[Hashable, list[Tensor]] = {}
    for choice in group.choices:
        values = choice.active_probabilities() if rank_by == "probability" else choice.active_row()
        for name, value in zip(choice.active_columns(), values.detach(), strict=False):  # "none" is no operator
            columns.setdefault(name, []).append(value)

    def score(values: list[Tensor]) -> float:
        column = torch.stack(values)
        return float(column.sum() if rank_by == "probability" else torch.linalg.vector_norm(column))

    return {name: score(values) for name, values in columns.items()}


def remove_lowest(
    groups: Iterable[ColumnGroup], pruning: PruningSchedule, epoch: int, warmup_epochs: int, epochs: int
) -> None:
    """Remove the lowest-ranked operators of each group down to the number that the schedule states.

    Args:
        groups: The groups of the supernet; what cannot be removed is left alone.
        pruning: The schedule.
        epoch: The epoch that ends, from 0.
        warmup_epochs: Epochs before the architecture parameters move.
        epochs: Epochs in all.

    Source:
        Section 3.2: "the last several candidates will be removed from search space gradually".
    """
    for group in removable(groups):
        scores = operator_scores(group, pruning.rank_by)
        start = len(group.choices[0].columns)
        remaining = pruning.remaining(group.title, start, epoch, warmup_epochs, epochs)
        ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
        left = distributed.broadcast_object(ranked[:remaining])
        if len(left) < len(ranked):
            for layer in group.layers():
                layer.prune_to(left)
