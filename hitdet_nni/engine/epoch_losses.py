"""The losses of a training's running epoch, and their mean over all processes."""

from __future__ import annotations

from typing import Any

from hitdet_nni.engine import distributed


class EpochLosses:
    """The losses of the running epoch's batches."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def last(self) -> float:
        """Return the loss of the last batch."""
        return self.values[-1]

    def take_mean(self) -> float:
        """Return their mean over all processes; the next epoch starts with none."""
        values, self.values = self.values, []
        return distributed.mean(sum(values) / len(values))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint within the epoch needs."""
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.values = list(state["values"])
