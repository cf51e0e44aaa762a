"""The scores of a component's operators over the epochs of its screening, and when each was removed.

Probabilities are drawn relative to the mean of the active operators, because they grow by themselves as operators
leave; scores by samples, which may have either sign, as they are. A screening of one epoch has no curves: its operators
are rows in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hitdet_nni.config.skeleton import Component
from hitdet_nni.report import svg
from hitdet_nni.report.axes import Axes, Scale, number, span
from hitdet_nni.report.line_chart import Chart
from hitdet_nni.report.operator_text import family_of
from hitdet_nni.runs.tables import Score

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 92, 30, 42
LINE_HEIGHT = 12.5

NAMES = 96
"""Room for the names of operators left of the rows of a single epoch."""


@dataclass(frozen=True)
class Removed:
    """The operators that the end of an epoch removed.

    Attributes:
        epoch: The epoch, from 1.
        operators: Their names, the best first.
        left: Number of operators that stayed.
    """

    epoch: int
    operators: tuple[str, ...]
    left: int


@dataclass(frozen=True)
class ComponentScreening:
    """What a page shows of a component's screening.

    Attributes:
        component: The component.
        chart: The curves.
        removals: What left, by epoch; epochs that removed nothing are left out.
        kept: The operators that stayed, the best first.
        replaced: Those of them that the search was not handed, because its budget would have been out of reach.
        replacements: What it was handed in their place.
    """

    component: Component
    chart: Chart
    removals: tuple[Removed, ...]
    kept: tuple[str, ...]
    replaced: tuple[str, ...]
    replacements: tuple[str, ...]


def show_screening(
    component: Component, scores: Sequence[Score], handed_on: Sequence[str] | None = None
) -> ComponentScreening:
    """Draw the screening of a component.

    Args:
        component: The component.
        scores: Its scores, at least one.
        handed_on: The operators that the search was handed, where that is known.
    """
    epochs: dict[int, list[Score]] = {}
    for score in scores:
        epochs.setdefault(score.epoch, []).append(score)
    removals = []
    for epoch, rows in sorted(epochs.items()):
        gone = tuple(row.operator for row in _ranked(rows) if row.removed)
        if gone:
            removals.append(Removed(epoch + 1, gone, len(rows) - len(gone)))
    kept = tuple(row.operator for row in _ranked(epochs[max(epochs)]) if not row.removed)
    known = kept if handed_on is None else handed_on
    replaced = tuple(name for name in kept if name not in known)
    replacements = tuple(name for name in known if name not in kept)
    drawn = _chart(component, scores, kept)
    return ComponentScreening(component, drawn, tuple(removals), kept, replaced, replacements)


def _ranked(rows: Sequence[Score]) -> list[Score]:
    return sorted(rows, key=lambda row: row.score, reverse=True)


def _chart(component: Component, scores: Sequence[Score], kept: Sequence[str]) -> Chart:
    active_scores: dict[int, list[float]] = {}
    for score in scores:
        active_scores.setdefault(score.epoch, []).append(score.score)
    signed = any(score.score < 0 for score in scores)
    curves: dict[str, list[tuple[float, float]]] = {}
    last_scores: dict[str, float] = {}
    for score in sorted(scores, key=lambda score: score.epoch):
        mean = sum(active_scores[score.epoch]) / len(active_scores[score.epoch])
        height = score.score if signed else score.score / mean if mean else 1.0
        curves.setdefault(score.operator, []).append((score.epoch + 1, height))
        last_scores[score.operator] = score.score
    label = f"Screening scores of the {component}: {len(curves)} operators, kept are {', '.join(kept)}"
    quantity = "score" if signed else "score / mean of the active"
    if len(active_scores) == 1:
        heights = {name: points[0][1] for name, points in curves.items()}
        return Chart(component, _rows(heights, last_scores, kept, quantity, label))
    last = max(score.epoch for score in scores) + 1
    tall = max(HEIGHT, TOP + BOTTOM + LINE_HEIGHT * len(kept))  # all names of what is kept stand below one another
    axes = Axes(
        x=Scale(min(1, last - 1), last, LEFT, WIDTH - RIGHT),
        y=Scale(*span(y for curve in curves.values() for _, y in curve), tall - BOTTOM, TOP),
        x_label="epoch",
        y_label=quantity,
    )
    parts = axes.frame()
    for operator in (name for name in curves if name not in kept):
        end = curves[operator][-1]
        title = svg.element(
            "title", f"{operator}: removed after epoch {number(end[0])}, score {number(last_scores[operator])}"
        )
        x, y = axes.x(end[0]), axes.y(end[1])
        cross = svg.element("path", d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_="cross")
        parts.append(svg.element("g", title, axes.path(curves[operator], "curve gone"), cross))
    positions = spread({name: axes.y(curves[name][-1][1]) for name in kept}, TOP, tall - BOTTOM)
    for operator in kept:
        end = curves[operator][-1]
        look = f"fam-{family_of(operator)}"
        title = svg.element(
            "title", f"{operator}: kept, score {number(last_scores[operator])} after epoch {number(end[0])}"
        )
        x, y = axes.x(end[0]), axes.y(end[1])
        lead = svg.element("path", d=f"M{x:.1f} {y:.1f}L{x + 8:.1f} {positions[operator]:.1f}", class_="lead")
        name = svg.text(operator, x + 10, positions[operator] + 4, class_="end")
        dot = svg.element("circle", cx=x, cy=y, r=2.6, class_=f"mark {look}")
        parts.append(svg.element("g", title, axes.path(curves[operator], f"curve {look}"), lead, dot, name))
    return Chart(component, svg.drawing(WIDTH, tall, label, *parts))


def _rows(
    heights: Mapping[str, float], scores: Mapping[str, float], kept: Sequence[str], quantity: str, label: str
) -> Markup:
    """Draw the scores of a single epoch, a row an operator, the best first.

    Args:
        heights: What is drawn of each operator.
        scores: What its tooltip says.
        kept: Those that stayed.
        quantity: What is drawn.
        label: What the chart shows, for those who cannot see it.
    """
    top = 24.0
    bottom = top + LINE_HEIGHT * len(heights)
    low, high = span(heights.values(), zero=True)
    axes = Scale(min(low, 0.0), max(high, 0.0), NAMES, WIDTH - 12)
    parts = [svg.text(quantity, 2.0, 13, class_="label")]
    for value in axes.ticks(5):
        parts.append(svg.line(axes(value), top, axes(value), bottom, "grid"))
        parts.append(svg.text(number(value), axes(value), bottom + 14, anchor="middle", class_="tick"))
    for row, operator in enumerate(sorted(heights, key=lambda name: heights[name], reverse=True)):
        x, y = axes(heights[operator]), top + LINE_HEIGHT * (row + 0.5)
        stays = operator in kept
        title = svg.element("title", f"{operator}: {'kept' if stays else 'removed'}, score {number(scores[operator])}")
        look = f"fam-{family_of(operator)}" if stays else "gone"
        mark = (
            svg.element("circle", cx=x, cy=y, r=3.2, class_=f"mark {look}")
            if stays
            else svg.element("path", d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6", class_="cross")
        )
        name = svg.text(operator, NAMES - 6, y + 4, anchor="end", class_="end" if stays else "end gone")
        parts.append(svg.element("g", title, svg.line(axes(0.0), y, x, y, f"curve {look}"), mark, name))
    parts.append(svg.line(axes(0.0), top, axes(0.0), bottom, "axis"))
    return svg.drawing(WIDTH, bottom + 20, label, *parts)


def spread(wanted: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """Place labels near the heights wanted, a line's height between any two, within bounds if there is room.

    Args:
        wanted: Height of each label.
        low: Least height.
        high: Largest height.
    """
    names = sorted(wanted, key=lambda name: wanted[name])
    positions: list[float] = []
    for name in names:
        positions.append(max(wanted[name], positions[-1] + LINE_HEIGHT if positions else low))
    ceiling = high
    for index in reversed(range(len(positions))):
        positions[index] = min(positions[index], ceiling)
        ceiling = positions[index] - LINE_HEIGHT
    return dict(zip(names, positions, strict=True))
