"""What the pages of figures are made of: tables in Markdown, and the line that says where figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = DOCS / "benchmarks"

Report = Mapping[str, Any]


def surroundings(report: Report) -> str:
    """One line that says where and when a report was made, and what its ``remark``, if it was given one, adds."""
    device = "" if report["device"] == "cpu" else f", {report['device']}"
    nni = f", NNI {report['nni']}" if "nni" in report else ""
    remark = f" {report['remark']}" if "remark" in report else ""
    return (
        f"{report['processor']}{device}, threads: {report['threads']}, torch {report['torch']}{nni}, "
        f"Python {report['python']}, {report['date'][:10]}, {report['clock']} clock.{remark}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first two columns are words."""
    marks = ["---" if index < 2 else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def number(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"
