"""What a table of latencies predicts against what whole detectors take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr


@dataclass(frozen=True)
class Prediction:
    """A detector whose latency was predicted and measured, in milliseconds."""

    name: str
    gflops: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The difference over what was measured, without its sign."""
        return abs(self.predicted - self.measured) / self.measured


@dataclass(frozen=True)
class PredictionSummary:
    """How well a table predicts.

    Attributes:
        median_error: Median of the relative errors.
        largest_error: Largest of them.
        spearman: Rank correlation of what is predicted with what is measured.
        spearman_gflops: The same of GFLOPs, for comparison.
        detectors: Detectors that were measured.
    """

    median_error: float
    largest_error: float
    spearman: float
    spearman_gflops: float
    detectors: int

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> PredictionSummary:
        """Summarise three predictions or more."""
        measured = [one.measured for one in predictions]
        return cls(
            statistics.median(one.error for one in predictions),
            max(one.error for one in predictions),
            float(spearmanr([one.predicted for one in predictions], measured).statistic),
            float(spearmanr([one.gflops for one in predictions], measured).statistic),
            len(predictions),
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""
        return [
            f"predicted latency is off by {100 * self.median_error:.1f} % (median over {self.detectors} detectors), "
            f"{100 * self.largest_error:.1f} % at most",
            f"Spearman's rho of predicted and measured latency {self.spearman:+.3f}; of GFLOPs and measured latency "
            f"{self.spearman_gflops:+.3f}",
        ]
