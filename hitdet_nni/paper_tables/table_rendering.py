"""The compared tables as text for terminals, as Markdown for the documentation and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hitdet_nni.cost.profile import PAPER_SHAPE
from hitdet_nni.cost.stored_costs import CONVENTION
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, write_text
from hitdet_nni.paper_tables.tables import PROPOSALS, TOLERANCE, Figure, PaperTable, RowComparison

Compared = Sequence[tuple[PaperTable, Sequence[RowComparison]]]

LABELS: dict[Figure, str] = {
    "backbone": "backbone M",
    "neck": "neck M",
    "head": "head M",
    "total": "params M",
    "gflops": "GFLOPs",
}
FOOTNOTE = "* average precision, percent: published, not reproduced here"
BEGIN = "<!-- begin: written by `hitdet-nni tables --markdown docs/results.md` -->"
END = "<!-- end -->"


@dataclass(frozen=True)
class Sheet:
    """One table in words.

    Attributes:
        title: Heading.
        columns: Heading of each column.
        lines: The cells of each row.
        remarks: What there is to say about rows.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]


def sheet(table: PaperTable, comparisons: Sequence[RowComparison]) -> Sheet:
    """Lay a compared table out: each published cost beside ours and the difference in percent, then the accuracies."""
    printed = {figure for comparison in comparisons for figure in comparison.published}
    columns = ["model"]
    for figure in table.figures:
        label = LABELS[figure]
        columns += [label, "ours", "diff %"] if figure in printed else [f"{label}, ours"]
    columns += [f"{accuracy}*" for accuracy in table.accuracies]
    lines = []
    for comparison in comparisons:
        cells = [comparison.name]
        for figure in table.figures:
            ours = _cell(comparison.ours.get(figure), "{:.2f}")
            if figure in printed:
                difference = _cell(comparison.differences.get(figure), "{:+.2f}")
                cells += [_cell(comparison.published.get(figure), "{}"), ours, difference]
            else:
                cells.append(ours)
        lines.append((*cells, *_accuracies(table, comparison)))
    remarks = tuple(f"{each.name}: {each.remark}" for each in comparisons if each.remark)
    return Sheet(f"Table {table.number}: {table.title}", tuple(columns), tuple(lines), remarks)


def _accuracies(table: PaperTable, comparison: RowComparison) -> list[str]:
    if comparison.measured is not None:
        return [_cell(comparison.measured.get(each), "{:.1f} here") for each in table.accuracies]
    published = {} if comparison.beside else comparison.row.published.accuracy
    return [_cell(published.get(each), "{:.1f}") for each in table.accuracies]


def _cell(value: float | Decimal | None, form: str) -> str:
    # Rounding may leave a minus before zero.
    return "-" if value is None else form.format(value).replace("-0.00", "+0.00")


def conditions() -> str:
    """Tell what all FLOPs are counted for, in a line."""
    height, width = PAPER_SHAPE
    return f"Input {height} x {width} unless a row says otherwise, {PROPOSALS} proposals, convention {CONVENTION!r}."


def summary(compared: Compared) -> str:
    """Tell how many rows are rebuilt, which are not, and which miss a printed figure, in a line."""
    rows = [(table, each) for table, found in compared for each in found if not each.beside]

    def names(chosen: Sequence[tuple[PaperTable, RowComparison]]) -> str:
        return ", ".join(f"{each.name} (Table {table.number})" for table, each in chosen) or "none"

    missing = [(table, each) for table, each in rows if each.row.missing]
    missed = [(table, each) for table, each in rows if each.missed]
    return (
        f"{len(rows) - len(missing)} of {len(rows)} rows rebuilt; not rebuilt: {len(missing)}, {names(missing)}; "
        f"more than {TOLERANCE} % from a printed figure: {len(missed)}, {names(missed)}."
    )


def rich_table(found: Sheet) -> Table:
    """Return the columns and lines of a sheet for terminals; title and remarks go around it."""
    table = Table(box=box.SIMPLE)
    for index, column in enumerate(found.columns):
        table.add_column(column, justify="right" if index else "left")
    for line in found.lines:
        table.add_row(*line)
    return table


def markdown(compared: Compared) -> str:
    """Write all tables as a section's text."""
    blocks = [conditions(), f"\\{FOOTNOTE}."]
    for table, comparisons in compared:
        found = sheet(table, comparisons)
        lines = [f"### {found.title}", ""]
        lines += [_line(found.columns), _line(["---", *["---:"] * (len(found.columns) - 1)])]
        lines += [_line(line) for line in found.lines]
        blocks.append("\n".join(lines))
        if found.remarks:
            blocks.append("\n".join(f"- {remark}." for remark in found.remarks))
    blocks.append(summary(compared))
    return "\n\n".join(blocks)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("*", "\\*")


def section(text: str, source: Path) -> tuple[str, str, str]:
    """Split a document into what stands before, between and after the two markers.

    Raises:
        InputError: If a marker is missing, or they stand in the wrong order.
    """
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"lacks a marker: {BEGIN} or {END}", source=source)
    return before, between, after


def update_markdown(path: Path, compared: Compared) -> None:
    """Replace the section between the markers in a document, atomically.

    Raises:
        InputError: If the file cannot be read or lacks a marker.
    """
    before, _, after = section(read_text(path), path)
    write_text(path, f"{before}{BEGIN}\n\n{markdown(compared)}\n\n{END}{after}")


def plain(compared: Compared) -> dict[str, Any]:
    """Return all as numbers and strings: params in millions, FLOPs in 10^9, accuracies and differences in percent."""
    tables = []
    for table, comparisons in compared:
        rows = [
            {
                "model": comparison.row.model,
                "rebuilt_by": comparison.row.baseline or comparison.row.architecture,
                "shape": list(comparison.shape),
                "published": {figure: float(value) for figure, value in comparison.published.items()},
                "ours": comparison.ours,
                "difference_percent": comparison.differences,
                "published_accuracy": comparison.row.published.accuracy,
                "measured_accuracy": comparison.measured,
                "remark": comparison.remark,
            }
            for comparison in comparisons
        ]
        tables.append({"number": table.number, "title": table.title, "rows": rows})
    return {"convention": CONVENTION, "proposals": PROPOSALS, "tables": tables, "summary": summary(compared)}
