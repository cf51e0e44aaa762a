"""What a decided architecture costs: by component and by layer, by both conventions, beside its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.cost.cost_model import PARTS, Convention, Cost, CostModel
from hitdet_nni.report import svg
from hitdet_nni.report.axes import Scale, number

CONVENTIONS: Mapping[Convention, str] = {
    "macs": "multiply-adds of convolutions and linear layers",
    "paper": "the counter behind the published figures: bias, batch norm and ReLU too",
}

WIDTH, LEFT, RIGHT, BAR = 560, 12, 20, 30
"""Size of a bar chart, in units that are about a pixel each."""


@dataclass(frozen=True)
class LayerCost:
    """One row of the table of layers; shares are of the largest layer's cost."""

    part: str
    layer: str
    operator: str
    params_m: float
    gflops: float
    params_share: float
    gflops_share: float


@dataclass(frozen=True)
class PartCost:
    """The cost of a component, of the RPN, or of everything."""

    part: str
    params_m: float
    gflops: float


@dataclass(frozen=True)
class CostView:
    """The cost by one convention.

    Attributes:
        convention: Its name.
        meaning: What it counts.
        condition: Input size and RoIs that FLOPs are for.
        bars: FLOPs and parameters as stacked bars.
        parts: Components with a cost, and the total.
        layers: All layers.
    """

    convention: Convention
    meaning: str
    condition: str
    bars: tuple[Markup, ...]
    parts: tuple[PartCost, ...]
    layers: tuple[LayerCost, ...]


def cost_views(architecture: Architecture, budget: BudgetSettings | None) -> tuple[CostView, ...]:
    """Show the cost by both conventions.

    Args:
        architecture: What is counted.
        budget: The budget of its search, which counts as ``macs`` does.
    """
    return tuple(_view(architecture, convention, budget) for convention in CONVENTIONS)


def _view(architecture: Architecture, convention: Convention, budget: BudgetSettings | None) -> CostView:
    model = CostModel(architecture.skeleton, architecture.num_classes, convention=convention)
    rows, sums = model.rows(architecture.sample), model.architecture(architecture.sample)
    most = Cost(max(cost.params for *_, cost in rows) or 1, max(cost.flops for *_, cost in rows) or 1)
    height, width = model.shape
    rois = f", {model.proposals} RoIs" if model.proposals else ""
    limits = {
        "GFLOPs": budget.gflops if budget is not None and convention == "macs" else None,
        "M parameters": budget.params_m if budget is not None else None,
    }
    by_part = {part: cost for part, cost in sums.items() if part != "total" and (cost.params or cost.flops)}
    return CostView(
        convention,
        CONVENTIONS[convention],
        f"input {height} × {width}{rois}",
        (
            _stacked("GFLOPs", {part: cost.gflops for part, cost in by_part.items()}, limits["GFLOPs"]),
            _stacked("M parameters", {part: cost.params_m for part, cost in by_part.items()}, limits["M parameters"]),
        ),
        tuple(
            PartCost(part, sums[part].params_m, sums[part].gflops)
            for part in (*PARTS, "total")
            if part in by_part or part == "total"
        ),
        tuple(
            LayerCost(
                part,
                layer,
                name,
                cost.params_m,
                cost.gflops,
                cost.params / most.params,
                cost.flops / most.flops,
            )
            for part, layer, name, cost in rows
        ),
    )


def _stacked(unit: str, parts: Mapping[str, float], limit: float | None) -> Markup:
    """Draw one bar of stacked components, and the budget as a line across it."""
    total = sum(parts.values())
    scale = Scale(0.0, max(total, limit or 0.0) * 1.04 or 1.0, LEFT, WIDTH - RIGHT)
    top = 36.0
    drawn, start = [], 0.0
    for part, value in parts.items():
        x, width = scale(start), scale(start + value) - scale(start)
        title = svg.element("title", f"{part}: {number(value)} {unit}, {value / (total or 1):.0%} of the total")
        bar = svg.element("rect", x=x, y=top, width=width, height=BAR, class_=f"bar part-{part}")
        name = f"{part} {number(value)}"
        fits = width > 6.6 * len(name)
        drawn.append(
            svg.element("g", title, bar, *([svg.text(name, x + 5, top + BAR / 2 + 4, class_="in-bar")] if fits else []))
        )
        start += value
    for value in scale.ticks(6):
        drawn.append(svg.line(scale(value), top + BAR, scale(value), top + BAR + 4, "axis"))
        drawn.append(svg.text(number(value), scale(value), top + BAR + 17, anchor="middle", class_="tick"))
    drawn.append(svg.line(scale.start, top + BAR, scale.end, top + BAR, "axis"))
    drawn.append(svg.text(f"{unit}, total {number(total)}", LEFT, 14, class_="label"))
    label = f"{unit}: {', '.join(f'{part} {number(value)}' for part, value in parts.items())}, total {number(total)}"
    if limit is not None:
        place = scale(limit)
        drawn.append(svg.line(place, top - 5, place, top + BAR + 6, "level"))
        drawn.append(
            svg.text(
                f"budget {number(limit)}",
                place,
                top - 8,
                anchor="start" if place < WIDTH / 2 else "end",
                class_="label",
            )
        )
        label += f", budget {number(limit)}"
    return svg.drawing(WIDTH, top + BAR + 24, label, *drawn, class_="chart bars")
