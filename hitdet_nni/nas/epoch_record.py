"""What is recorded of an epoch of screening or search."""

from __future__ import annotations

from dataclasses import dataclass, field

from hitdet_nni.nas.health.stats import SearchStats


@dataclass(frozen=True)
class EpochRecord:
    """What is watched at the end of an epoch of screening or search.

    Attributes:
        epoch: The epoch, from 0.
        train_loss: Mean loss of the epoch's batches (both phases).
        val_loss: Mean loss of the validation images.
        cost_weight: lambda of Eq. 6: as it was set, or where a budget has brought it.
        health: Entropies, costs, changes and gradients of the architecture parameters.
        probabilities: Weight of every active candidate, by label.
        alphas: Architecture parameter of every active candidate, by label.
        scores: Score of every active operator, by component, before this epoch's removals.
        seconds: Wall time of the epoch.
    """

    epoch: int
    train_loss: float
    val_loss: float
    cost_weight: float
    health: SearchStats
    probabilities: dict[str, dict[str, float]] = field(repr=False)
    alphas: dict[str, dict[str, float]] = field(repr=False)
    scores: dict[str, dict[str, float]] = field(repr=False)
    seconds: float = 0.0

    @property
    def expected_gflops(self) -> float:
        """Expected cost under the architecture parameters (Eq. 7)."""
        return self.health.expected_gflops

    @property
    def entropy(self) -> dict[str, float]:
        """Mean entropy of each searched component's probabilities, 1 for uniform, 0 for decided."""
        return self.health.entropy

    def metrics(self) -> dict[str, float]:
        """Return the numbers for a table or a plot, flat."""
        return {
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "gflops": self.expected_gflops,
            "cost_weight": self.cost_weight,
            **self.health.metrics(),
            "seconds": self.seconds,
        }
