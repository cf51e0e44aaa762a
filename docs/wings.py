"""Draw the wings of the package and their imports: ``wings.svg``, and the table of the page on design.

python docs/wings.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "hitdet_nni"
DRAWING, PAGE = DOCS / "wings.svg", DOCS / "design.md"
BEGIN, END = "<!-- begin wings: written by docs/wings.py -->", "<!-- end wings -->"

WINGS = (
    "cli",
    "api",
    "commands",
    "integration",
    "studies",
    "pipeline",
    "training",
    "nas",
    "loggers",
    "report",
    "paper_tables",
    "deployment",
    "data",
    "runs",
    "engine",
    "cost",
    "model",
    "config",
    "operators",
    "kernels",
    "compat",
    "io",
    "errors",
)
"""The wings from top to bottom; each imports only those below it (``tests/repository/test_structure.py``)."""

WIDTH, ROW, GAP = 700, 66, 34
BOX_HEIGHT, LETTER, PADDING, MARGIN = 30, 8.2, 12, 16
STYLE = """\
svg { background: #fff; font: 14px system-ui, sans-serif }
rect { fill: #eef3fb; stroke: #4a6fa5 }
text { fill: #1b2a41; text-anchor: middle }
path { fill: none; stroke: #8a9bb5; stroke-width: 1.2; marker-end: url(#head) }
marker path { fill: #8a9bb5; stroke: none }
@media (prefers-color-scheme: dark) {
  svg { background: #14181f }
  rect { fill: #1f2c40; stroke: #7fa3d9 }
  text { fill: #e6edf7 }
  path { stroke: #6c7d97 }
  marker path { fill: #6c7d97 }
}"""

Graph = Mapping[str, frozenset[str]]
"""The wings that each wing imports."""


def module_imports(path: Path) -> set[str]:
    """Return the dotted names below ``hitdet_nni`` that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("hitdet_nni.") for name in names if name.startswith("hitdet_nni.")}


def wing_of(path: Path) -> str:
    """Return the wing that a module of the package lies in: the first part of its dotted name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports() -> Graph:
    """Return the imports between wings; what concerns the package's own ``__init__`` is left out."""
    graph: dict[str, set[str]] = {wing: set() for wing in WINGS}
    for path in sorted(PACKAGE.rglob("*.py")):
        wing = wing_of(path)
        if wing in graph:
            graph[wing] |= {name.partition(".")[0] for name in module_imports(path)} & set(WINGS) - {wing}
    return {wing: frozenset(found) for wing, found in graph.items()}


def reachable(graph: Graph, wing: str) -> frozenset[str]:
    """Return all wings that a wing needs, directly or through others."""
    direct = graph[wing]
    return direct.union(*(reachable(graph, other) for other in direct))


def essential(graph: Graph) -> Graph:
    """Return the graph without arrows that a longer way implies."""
    return {
        wing: frozenset(
            other for other in direct if not any(other in reachable(graph, between) for between in direct - {other})
        )
        for wing, direct in graph.items()
    }


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each wing, from 0 at the top: one below the lowest wing that imports it."""
    found: dict[str, int] = {}
    for wing in WINGS:
        found[wing] = 1 + max((found[other] for other in found if wing in graph[other]), default=-1)
    return found


Point = tuple[float, float]
Lane = tuple[str, str, int]
"""Where an arrow, given by both its ends, crosses a floor between them."""


def places(graph: Graph) -> dict[str | Lane, Point]:
    """Return the centres of boxes and lanes in pixels; on each floor they are ordered by what leads to them."""
    floor = floors(graph)
    above: dict[str | Lane, list[str | Lane]] = {wing: [] for wing in WINGS}
    rows: list[list[str | Lane]] = [[] for _ in range(1 + max(floor.values()))]
    for wing in WINGS:
        rows[floor[wing]].append(wing)
        for other in sorted(graph[wing], key=WINGS.index):
            last: str | Lane = wing
            for level in range(floor[wing] + 1, floor[other]):
                lane = wing, other, level
                rows[level].append(lane)
                above[lane] = [last]
                last = lane
            above[other].append(last)
    centre: dict[str | Lane, Point] = {}
    for level, row in enumerate(rows):
        wanted = {
            item: sum(centre[one][0] for one in above[item]) / len(above[item]) if above[item] else WIDTH / 2
            for item in row
        }
        row.sort(key=lambda item: wanted[item])
        widths = [box_width(item) + GAP for item in row]
        x = [wanted[item] for item in row]
        for _ in range(200):  # push neighbours apart until no two overlap
            for index in range(1, len(row)):
                lap = (widths[index - 1] + widths[index]) / 2 - (x[index] - x[index - 1])
                if lap > 0:
                    x[index - 1] -= lap / 2
                    x[index] += lap / 2
        centre |= {item: (place, MARGIN + BOX_HEIGHT / 2 + level * ROW) for item, place in zip(row, x, strict=True)}
    return centre


def box_width(item: str | Lane) -> float:
    """Return the width of a wing's box in pixels; a lane has none."""
    return len(item) * LETTER + 2 * PADDING if isinstance(item, str) else 0.0


def arrow(points: Sequence[Point]) -> str:
    """Return a path from the lower side of the first box, along lanes, to the upper side of the last one."""
    stops = [(points[0][0], points[0][1] + BOX_HEIGHT / 2), *points[1:-1]]
    stops.append((points[-1][0], points[-1][1] - BOX_HEIGHT / 2 - 5))
    parts = [f"M{stops[0][0]:.0f} {stops[0][1]:.0f}"]
    for (x, y), (to_x, to_y) in pairwise(stops):
        middle = (y + to_y) / 2
        parts.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
    return f'<path d="{" ".join(parts)}"/>'


def svg() -> str:
    """Return the drawing: a box a wing, and the arrows that no longer way implies."""
    graph = essential(imports())
    floor, centre = floors(graph), places(graph)
    left = min(x - box_width(item) / 2 for item, (x, _) in centre.items()) - MARGIN
    width = max(x + box_width(item) / 2 for item, (x, _) in centre.items()) + MARGIN - left
    height = max(y for _, y in centre.values()) + BOX_HEIGHT / 2 + MARGIN
    arrows, boxes = [], []
    for wing in WINGS:
        for other in sorted(graph[wing], key=WINGS.index):
            lanes = [centre[wing, other, level] for level in range(floor[wing] + 1, floor[other])]
            arrows.append(arrow([centre[wing], *lanes, centre[other]]))
        (x, y), size = centre[wing], box_width(wing)
        boxes.append(
            f'<rect x="{x - size / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{size:.0f}" height="{BOX_HEIGHT}" '
            f'rx="6"/><text x="{x:.0f}" y="{y + 5:.0f}">{wing}</text>'
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {width:.0f} {height:.0f}" role="img">\n'
        f"<title>The wings of hitdet_nni and what each imports</title>\n<style>\n{STYLE}\n</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 Z"/></marker></defs>\n'
    )
    return head + "\n".join([*arrows, *boxes]) + "\n</svg>\n"


def summary(wing: str) -> str:
    """Return the first sentence of a wing's docstring."""
    folder = PACKAGE / wing
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text.partition("\n")[0].rstrip(".").replace("``", "`"))


def table() -> str:
    """Return the table of the wings from top to bottom: what each is, and what it imports."""
    graph = imports()
    rows = ["| wing | what it is | imports |", "| --- | --- | --- |"]
    for wing in WINGS:
        name = f"`{wing}/`" if (PACKAGE / wing).is_dir() else f"`{wing}.py`"
        others = ", ".join(other for other in WINGS if other in graph[wing])
        rows.append(f"| {name} | {summary(wing)} | {others} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """Return the page on design with the table of today.

    Raises:
        ValueError: If its markers are missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"no {BEGIN}")
    return re.sub(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL
    )


if __name__ == "__main__":
    DRAWING.write_text(svg(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
