"""Several runs side by side: a table, and accuracy against cost with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from hitdet_nni.cost.pareto import pareto_front, stairs
from hitdet_nni.cost.units import UNITS
from hitdet_nni.report import svg
from hitdet_nni.report.axes import Axes, Scale, number, span
from hitdet_nni.report.exported_files import FileRow, exported_files
from hitdet_nni.report.line_chart import Chart, Series, line_chart
from hitdet_nni.report.precisions import percent
from hitdet_nni.report.summary import duration, goal_of, size_of, state_of, validation_of
from hitdet_nni.runs.reading import Run

WIDTH, HEIGHT = 900, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 32, 46
LETTER, LINE = 6.6, 14
"""Room that a letter of a name takes, and a line."""

COLOURS = 6
"""Colours of lines in the style sheet."""

COLUMNS = ("mAP", "mAP_50", "mAP_s", "mAP_m", "mAP_l")
"""Average precisions in the table, by the keys of ``metrics.json``."""


@dataclass(frozen=True)
class Compared:
    """One run of a comparison.

    Attributes:
        name: A name that no other run of the comparison has.
        state: How far it has come.
        precisions: Those of ``COLUMNS``, percent, as text.
        accuracy: mAP in percent, if it was retrained.
        params_m: Parameters in millions, if it has an architecture or is a baseline that could be counted.
        gflops: Multiply-adds in 10^9, likewise.
        input_size: Height and width of the input that they are for.
        seconds: Wall time of all stages, if it is known.
        seed: The seed.
        goal: Budget or lambda of its own search, or that it is a baseline; a dash where another search found it.
        on_front: Whether no other run beats it.
    """

    name: str
    state: str
    precisions: tuple[str, ...]
    accuracy: float | None
    params_m: float | None
    gflops: float | None
    input_size: str
    seconds: float | None
    seed: int
    goal: str
    on_front: bool = False

    @property
    def time(self) -> str:
        """The wall time for people."""
        return "–" if self.seconds is None else duration(self.seconds)


@dataclass(frozen=True)
class RunComparison:
    """What a comparison's page shows.

    Attributes:
        runs: The runs in the order given.
        scatter: Accuracy against cost, if a run has both.
        front: Names of the runs on the Pareto front, by ascending cost.
        fronts: The fronts of the runs' supernets, where there are some, in the unit of the first.
        validation: What the runs with a result were evaluated on; if there are several, average precisions do not
            compare, and no run is on a front.
        input_sizes: Those that costs are for.
        files: The exported files that were benchmarked.
    """

    runs: tuple[Compared, ...]
    scatter: Markup | None
    front: tuple[str, ...]
    fronts: Chart | None
    validation: tuple[str, ...]
    input_sizes: tuple[str, ...]
    files: tuple[FileRow, ...]

    @property
    def conditions(self) -> tuple[str, ...]:
        """How latencies were measured; if in several ways, they do not compare."""
        return tuple(sorted({row.conditions for row in self.files}))


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Put runs side by side.

    Args:
        runs: At least one run, in any state.
    """
    names = unique_names([run.path for run in runs])
    sizes = [size_of(run) for run in runs]
    points = {
        index: (size.gflops, 100 * run.result.metrics["mAP"])
        for index, (run, size) in enumerate(zip(runs, sizes, strict=True))
        if size is not None and run.result is not None
    }
    validation = dict.fromkeys(validation_of(run.settings) for run in runs if run.result is not None)
    front = [list(points)[place] for place in pareto_front(list(points.values()))] if len(validation) == 1 else []
    compared = []
    for index, (run, name, size) in enumerate(zip(runs, names, sizes, strict=True)):
        metrics = {} if run.result is None else run.result.metrics
        compared.append(
            Compared(
                name=name,
                state=state_of(run),
                precisions=tuple(percent(metrics.get(key)) for key in COLUMNS),
                accuracy=100 * metrics["mAP"] if metrics else None,
                params_m=None if size is None else size.params_m,
                gflops=None if size is None else size.gflops,
                input_size="" if size is None else size.input_size,
                seconds=sum(run.metadata.seconds.values()) if run.metadata.seconds else None,
                seed=run.settings.seed,
                goal=_goal(run),
                on_front=index in front,
            )
        )
    return RunComparison(
        runs=tuple(compared),
        scatter=_scatter(compared, front) if points else None,
        front=tuple(names[index] for index in front),
        fronts=_fronts(runs, names),
        validation=tuple(validation),
        input_sizes=tuple(sorted({size.input_size for size in sizes if size is not None})),
        files=exported_files(zip(names, runs, strict=True)),
    )


def _fronts(runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    """Draw the loss of the architectures on each supernet's front against their cost."""
    found = {name: [row for row in run.front if row.on_front] for run, name in zip(runs, names, strict=True)}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return None
    unit = next(iter(found.values()))[0].unit
    series = [
        Series(name, tuple((row.cost, row.loss) for row in rows), f"c{1 + number % COLOURS}")
        for number, (name, rows) in enumerate(found.items())
        if rows[0].unit == unit
    ]
    remark = "On images of each run's own search. Losses of different supernets do not compare; what cost buys does."
    if len(series) < len(found):
        remark += f" {len(found) - len(series)} of other units are left out."
    label = "detection loss in the supernet"
    return line_chart("Fronts of the supernets", label, series, x_label=UNITS[unit].name, whole=False, remark=remark)


def _goal(run: Run) -> str:
    if run.baseline is not None:
        return "baseline"
    goal = goal_of(run)
    if goal is None:
        return "–"
    symbol, value, unit = goal
    return f"{symbol} {value}" if symbol == "λ" else f"{value} {unit}"


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' names, with as many of the folders above as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _scatter(runs: Sequence[Compared], front: Sequence[int]) -> Markup:
    points = {
        index: (run.gflops, run.accuracy)
        for index, run in enumerate(runs)
        if run.gflops is not None and run.accuracy is not None
    }
    axes = Axes(
        x=Scale(*_span(cost for cost, _ in points.values()), LEFT, WIDTH - RIGHT),
        y=Scale(*_span(accuracy for _, accuracy in points.values()), HEIGHT - BOTTOM, TOP),
        x_label="GFLOPs (multiply-adds)",
        y_label="mAP, percent",
        whole=False,
    )
    parts = axes.frame()
    steps = stairs([points[index] for index in front], axes.x.high) if front else []
    if front:
        parts.append(axes.path(steps, "front"))
    positions = {index: (axes.x(cost), axes.y(accuracy)) for index, (cost, accuracy) in points.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in positions.values()]
    corners = [(axes.x(cost), axes.y(accuracy)) for cost, accuracy in steps]
    taken += [
        (min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1)
        for (x, y), (to_x, to_y) in pairwise(corners)
    ]
    for index, (x, y) in positions.items():
        run, best = runs[index], index in front
        at, base, anchor = _place_name(run.name, x, y, taken)
        title = svg.element("title", f"{run.name}: mAP {run.precisions[0]}, {number(run.gflops or 0.0)} GFLOPs")
        dot = svg.element("circle", cx=x, cy=y, r=5.5 if best else 4.5, class_="point best" if best else "point")
        name = svg.text(run.name, at, base, anchor=anchor, class_="point-name")
        parts.append(svg.element("g", title, dot, name))
    label = f"mAP against GFLOPs of {len(points)} runs"
    if front:
        label += f"; on the Pareto front by ascending cost: {', '.join(runs[index].name for index in front)}"
    return svg.drawing(WIDTH, HEIGHT, label, *parts, class_="chart whole")


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Return a range that the values fill, none of it below 0, as no value is."""
    low, high = span(values)
    return max(0.0, low), high


Area = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _place_name(name: str, x: float, y: float, taken: list[Area]) -> tuple[float, float, str]:
    """Return place, base line and anchor of a name where nothing else is, if there is such a place; take it."""
    width = LETTER * len(name)
    ends = ((x + 9, x + 9, "start"), (x - 9 - width, x - 9, "end"), (x - width / 2, x, "middle"))
    bases = [y + 4 + dy for dy in (0, -LINE, LINE, -2 * LINE, 2 * LINE)]
    wanted = [(at, base, anchor) for base in bases for _, at, anchor in ends]
    areas = [(left, base - LINE + 3, left + width, base + 3) for base in bases for left, *_ in ends]

    def free(area: Area) -> bool:
        inside = area[0] >= LEFT and area[2] <= WIDTH - 2 and area[1] >= 0 and area[3] <= HEIGHT - BOTTOM
        return inside and not any(_overlap(area, other) for other in taken)

    index = next((index for index, area in enumerate(areas) if free(area)), 0)
    taken.append(areas[index])
    return wanted[index]


def _overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
