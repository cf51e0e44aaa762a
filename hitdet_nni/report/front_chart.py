"""A front of a supernet: the least loss that is to be had at each cost, and what was compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hitdet_nni.cost.pareto import stairs
from hitdet_nni.cost.units import UNITS
from hitdet_nni.report import svg
from hitdet_nni.report.axes import Axes, Scale, number, span
from hitdet_nni.report.sample_chart import BOTTOM, HEIGHT, HIGHEST, LEFT, RIGHT, TOP, WIDTH
from hitdet_nni.runs.front import FrontRow
from hitdet_nni.runs.front_budgets import budgets_by_point


@dataclass(frozen=True)
class FrontChart:
    """What a page shows of a front.

    Attributes:
        drawing: The chart.
        rows: The architectures on the front, by ascending cost.
        budgets: The budgets that one of them is the best within, as text, by its name.
        compared: How many were compared.
        above: How many of them are beyond the chart's upper end.
        searched: What the search itself has found, if it was among them.
        unit: Name of the unit of the costs.
        timed: Whether there are latencies.
    """

    drawing: Markup
    rows: tuple[FrontRow, ...]
    budgets: Mapping[str, str]
    compared: int
    above: int
    searched: FrontRow | None
    unit: str
    timed: bool


def front_chart(
    rows: Sequence[FrontRow], searched: Mapping[str, str] | None, budgets: Sequence[float] = ()
) -> FrontChart:
    """Draw a front.

    Args:
        rows: What was compared, by ascending cost; at least one is on the front.
        searched: The architecture that the search itself has found.
        budgets: Costs that one was asked for within, in ascending order.
    """
    front = [row for row in rows if row.on_front]
    highest = max(float(np.quantile([row.loss for row in rows], HIGHEST)), *(row.loss for row in front))
    shown = [row for row in rows if row.loss <= highest]
    unit = UNITS[front[0].unit].name
    axes = Axes(
        x=Scale(*span(row.cost for row in shown), LEFT, WIDTH - RIGHT),
        y=Scale(*span(row.loss for row in shown), HEIGHT - BOTTOM, TOP),
        x_label=unit,
        y_label="detection loss in the supernet",
        whole=False,
    )
    parts = axes.frame()
    parts.append(axes.path(stairs([(row.cost, row.loss) for row in front], axes.x.high), "front"))
    for row in sorted(shown, key=lambda row: row.on_front):
        found = row.sample == searched
        name = f"{row.name}{', found by the search' if found else ''}"
        title = svg.element("title", f"{name}: loss {number(row.loss)}, {number(row.cost)} {unit}")
        look = "point best" if row.on_front else "point"
        dots = [svg.element("circle", cx=axes.x(row.cost), cy=axes.y(row.loss), r=4.5, class_=look)]
        if found:
            dots.append(svg.element("circle", cx=axes.x(row.cost), cy=axes.y(row.loss), r=8.5, class_="ring"))
        parts.append(svg.element("g", title, *dots))
    label = f"loss against {unit} of {len(shown)} architectures, {len(front)} of them on the Pareto front"
    return FrontChart(
        drawing=svg.drawing(WIDTH, HEIGHT, label, *parts),
        rows=tuple(front),
        budgets={
            name: f"within {', '.join(map(number, limits))} {unit}"
            for name, limits in budgets_by_point(rows, budgets).items()
        },
        compared=len(rows),
        above=len(rows) - len(shown),
        searched=next((row for row in rows if row.sample == searched), None),
        unit=unit,
        timed=front[0].latency_ms is not None,
    )
