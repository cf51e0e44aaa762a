"""The curves of a search and of a retraining, and the series of the signs of health."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.report.line_chart import Chart, Level, Series, line_chart
from hitdet_nni.report.precisions import AVERAGE_PRECISIONS
from hitdet_nni.runs.tables import EpochMetrics
from hitdet_nni.runs.training_log import TrainingLog

LOOKS: Mapping[str, str] = {"backbone": "c1", "neck": "c2", "head": "c3"}
"""Colour of each component in curves."""


@dataclass(frozen=True)
class _Plot:
    """A chart of some columns of ``metrics.csv``.

    Attributes:
        title: Heading.
        y_label: Quantity and unit.
        columns: Column and what it is called.
        zero: Begin the vertical axis at 0.
        log: A logarithmic vertical axis.
        remark: What there is to know about it.
    """

    title: str
    y_label: str
    columns: Mapping[str, str]
    zero: bool = False
    log: bool = False
    remark: str = ""


def _by_component(prefix: str) -> dict[str, str]:
    return {f"{prefix}_{component}": component for component in COMPONENTS}


SEARCH = (
    _Plot("Losses", "detection loss", {"train_loss": "training", "val_loss": "validation"}),
    _Plot("Entropies", "entropy / uniform", _by_component("entropy"), remark="1: all operators equal; 0: decided."),
    _Plot(
        "Cost",
        "GFLOPs",
        {"gflops": "expected", "decoded_gflops": "decoded"},
        zero=True,
        remark="Decoded: the strongest operator of each layer; a search with a budget decodes within it at the end.",
    ),
)
"""What is drawn of every search."""

HEALTH = (
    _Plot(
        "Changed decisions",
        "share of layers",
        _by_component("changed"),
        zero=True,
        remark="Layers whose strongest operator is another than an epoch before.",
    ),
    _Plot(
        "Gradients of the architecture parameters",
        "L2 norm",
        _by_component("alpha_gradient"),
        zero=True,
        remark="0 in warm-up, where they do not move.",
    ),
    _Plot("Decoded to expected cost", "ratio", {"decoded_to_expected": "decoded / expected"}),
    _Plot(
        "What annotations are worth",
        "loss",
        {"annotations_gain": "annotations", "categories_gain": "categories"},
        remark="Growth of the loss on held-out images when they exchange annotations, or categories only.",
    ),
    _Plot(
        "Chance of such a gain",
        "p-value",
        {"annotations_p": "annotations", "categories_p": "categories"},
        log=True,
        remark="Probability of a gain as large where the detector has learned nothing.",
    ),
    _Plot("Weight of the cost", "lambda per GFLOP", {"cost_weight": "lambda"}, zero=True),
    _Plot("Time", "seconds an epoch", {"seconds": "seconds"}, zero=True),
)
"""The series of the signs of health."""


def search_charts(metrics: Sequence[EpochMetrics], budget: BudgetSettings | None) -> list[Chart]:
    """Draw losses, entropies and costs of a search; a budget in GFLOPs goes into the last."""
    levels = [Level("budget", budget.gflops)] if budget is not None and budget.gflops is not None else []
    return _charts(SEARCH, metrics, levels)


def health_charts(metrics: Sequence[EpochMetrics]) -> list[Chart]:
    """Draw the signs of health that the file has, those that no chart knows at the end."""
    known = {column for plot in (*SEARCH, *HEALTH) for column in plot.columns}
    others = [column for column in (metrics[0] if metrics else ()) if column not in known and column != "epoch"]
    return _charts([*HEALTH, *(_Plot(column, column, {column: column}) for column in others)], metrics, [])


def _charts(plots: Iterable[_Plot], metrics: Sequence[EpochMetrics], levels: Sequence[Level]) -> list[Chart]:
    charts = []
    for plot in plots:
        series = [
            Series(name, tuple((row["epoch"] + 1, row[column]) for row in metrics), LOOKS.get(name, f"c{index + 1}"))
            for index, (column, name) in enumerate(plot.columns.items())
            if metrics and column in metrics[0]
        ]
        if series:
            chart = line_chart(
                plot.title,
                plot.y_label,
                series,
                levels=levels if plot.y_label == "GFLOPs" else (),
                zero=plot.zero,
                log=plot.log,
                remark=plot.remark,
            )
            charts.append(chart)
    return charts


def training_charts(training: TrainingLog) -> list[Chart]:
    """Draw loss and average precisions of a retraining over its epochs."""
    charts = []
    if training.losses:
        charts.append(
            line_chart(
                "Loss of the retraining", "training loss", [Series("training", training.losses, "c1")], zero=True
            )
        )
    chosen = {key: AVERAGE_PRECISIONS[key] for key in ("mAP", "mAP_50", "mAP_75")}
    series = []
    for index, (key, name) in enumerate(chosen.items()):
        points = tuple(
            (float(epoch), 100 * found[key]) for epoch, found in training.evaluations if found.get(key, -1) >= 0
        )
        if points:
            series.append(Series(name, points, f"c{index + 1}"))
    if series:
        charts.append(
            line_chart(
                "Average precision on the validation images", "percent", series, x_label="finished epochs", zero=True
            )
        )
    return charts
