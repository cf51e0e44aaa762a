"""Pictures of studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hitdet_nni.studies.random_baseline import Rated, Summary

RANDOM_COLOUR, SEARCHED_COLOUR = "#56698f", "#c2410c"


def plot_random_study(rated: Sequence[Rated], summary: Summary, path: Path) -> None:
    """Plot mAP against GFLOPs and against the supernet's loss, one point an architecture, bars for the deviation."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    cost, score = figure.subplots(1, 2, sharey=True)
    _scatter(cost, rated, [one.gflops for one in rated])
    cost.set_xlabel("GFLOPs")
    cost.set_ylabel("mAP after retraining")
    cost.legend(frameon=False)
    _scatter(score, rated, [one.supernet_loss for one in rated])
    score.set_xlabel("loss with the supernet's weights")
    if summary.kendall is not None:
        score.set_title(f"Kendall's tau {summary.kendall:+.2f}, Spearman's rho {summary.spearman:+.2f}", fontsize=10)
    figure.savefig(path, dpi=120)


def _scatter(axes: Any, rated: Sequence[Rated], across: Sequence[float]) -> None:
    for label, colour, marker, chosen in (
        ("random", RANDOM_COLOUR, "o", range(1, len(rated))),
        ("searched", SEARCHED_COLOUR, "D", range(1)),
    ):
        axes.errorbar(
            [across[index] for index in chosen],
            [rated[index].mean for index in chosen],
            yerr=[rated[index].deviation or 0.0 for index in chosen],
            fmt=marker,
            color=colour,
            label=label,
            capsize=3,
        )
    axes.grid(alpha=0.3)
