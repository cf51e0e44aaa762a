"""Line charts: a few series over epochs, each with a colour and a mark of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hitdet_nni.report import svg
from hitdet_nni.report.axes import Axes, Scale, number, span

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 30, 42
"""Size of a chart and the room around its plot, in units that are about a pixel each."""

MANY_POINTS = 60
"""A series of more points is drawn without marks."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: What it shows.
        points: Places on both axes, in the order of the first.
        look: Name of its colour in the style sheet, ``c1`` to ``c6``.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    look: str


@dataclass(frozen=True)
class Level:
    """A horizontal line that values are compared with, such as a budget."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: Its heading.
        drawing: The SVG.
        legend: Name, colour and sample of each line.
        remark: What there is to know about it.
    """

    title: str
    drawing: Markup
    legend: tuple[tuple[str, str, Markup], ...] = ()
    remark: str = ""


def line_chart(
    title: str,
    y_label: str,
    series: Sequence[Series],
    *,
    x_label: str = "epoch",
    whole: bool = True,
    levels: Sequence[Level] = (),
    zero: bool = False,
    log: bool = False,
    remark: str = "",
) -> Chart:
    """Draw series over epochs.

    Args:
        title: Heading of the chart.
        y_label: Quantity and unit of the vertical axis.
        series: The lines, each with at least one point.
        x_label: Quantity and unit of the horizontal axis.
        whole: Whether only whole numbers have a meaning on it.
        levels: Values to compare with.
        zero: Begin the vertical axis at 0, if no value is below.
        log: A logarithmic vertical axis, if all values are above 0.
        remark: What there is to know about the chart.
    """
    values = [y for each in series for _, y in each.points] + [level.value for level in levels]
    log = log and min(values) > 0
    axes = Axes(
        x=Scale(*_epochs(series), LEFT, WIDTH - RIGHT),
        y=Scale(*span(values, zero=zero, log=log), HEIGHT - BOTTOM, TOP, log),
        x_label=x_label,
        y_label=y_label,
        whole=whole,
    )
    parts = axes.frame()
    for level in levels:
        place = axes.y(level.value)
        parts.append(svg.line(LEFT, place, WIDTH - RIGHT, place, "level"))
    for index, each in enumerate(series):
        parts.append(axes.path(each.points, f"curve {each.look}"))
        if len(each.points) <= MANY_POINTS:
            parts += [_point(axes, each, index, x, y) for x, y in each.points]
    legend = [(each.name, each.look, _sample(each.look, index)) for index, each in enumerate(series)]
    legend += [
        (f"{level.name} {number(level.value)}", "level", _small(svg.line(0, 7, 26, 7, "level"))) for level in levels
    ]
    return Chart(title, svg.drawing(WIDTH, HEIGHT, _in_words(title, y_label, series), *parts), tuple(legend), remark)


def _epochs(series: Sequence[Series]) -> tuple[float, float]:
    positions = [x for each in series for x, _ in each.points]
    low, high = min(positions), max(positions)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _in_words(title: str, y_label: str, series: Sequence[Series]) -> str:
    ends = "; ".join(f"{each.name} from {number(each.points[0][1])} to {number(each.points[-1][1])}" for each in series)
    return f"{title}, {y_label}: {ends}"


def _point(axes: Axes, series: Series, index: int, x: float, y: float) -> Markup:
    title = svg.element("title", f"{series.name}, {axes.x_label} {number(x)}: {number(y)}")
    return mark(index, axes.x(x), axes.y(y), f"mark {series.look}", title)


def mark(index: int, x: float, y: float, class_: str, *children: Markup) -> Markup:
    """Draw a point's mark; consecutive indices differ in form, so that colour is not needed to tell them apart."""
    form = index % 4
    if form == 0:
        return svg.element("circle", *children, cx=x, cy=y, r=3.2, class_=class_)
    if form == 1:
        return svg.element("rect", *children, x=x - 3, y=y - 3, width=6, height=6, class_=class_)
    corners = ((0, -4.2), (4, 3), (-4, 3)) if form == 2 else ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0))
    points = " ".join(f"{svg.plain(float(x + dx))},{svg.plain(float(y + dy))}" for dx, dy in corners)
    return svg.element("polygon", *children, points=points, class_=class_)


def _sample(look: str, index: int) -> Markup:
    return _small(svg.line(0, 7, 26, 7, f"curve {look}") + mark(index, 13, 7, f"mark {look}"))


def _small(content: Markup) -> Markup:
    return svg.element("svg", content, viewBox="0 0 26 14", width=26, height=14, aria_hidden="true")
