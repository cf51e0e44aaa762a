"""``tables``: the paper's cost tables."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_json

if TYPE_CHECKING:
    from hitdet_nni.paper_tables.tables import CostOf

HELP_ORDER = 130
HELP = "print the paper's cost tables, counted again, beside the published figures"
EXAMPLE = "hitdet-nni tables 2"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``tables``."""
    add_json(parser)
    parser.add_argument("number", nargs="?", type=int, choices=[1, 2, 5, 6], help="one table (default: all)")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="run directory of a retrained row, whose accuracies are shown too",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write all tables between the markers in FILE instead of printing"
    )
    parser.add_argument("--count", action="store_true", help="count the baselines again, on mmdet's modules")


def run(options: Namespace) -> None:
    """Print the paper's cost tables, published beside ours: those of baselines as they were counted and stored.

    Raises:
        InputError: If ``--markdown`` is given together with a table's number or ``--json``.
    """
    from hitdet_nni.commands.shared.console import echo, json_text
    from hitdet_nni.cost.stored_costs import stored_costs
    from hitdet_nni.engine.output import telling_output_errors
    from hitdet_nni.errors import InputError
    from hitdet_nni.integration.launcher.trial_table import print_table
    from hitdet_nni.paper_tables.measured import add_measured, load_measured
    from hitdet_nni.paper_tables.table_rendering import (
        FOOTNOTE,
        conditions,
        plain,
        rich_table,
        sheet,
        summary,
        update_markdown,
    )
    from hitdet_nni.paper_tables.tables import compare, load_tables

    if options.markdown is not None and (options.number is not None or options.json):
        raise InputError("writes all tables", source="--markdown", allowed="neither a number nor --json")
    chosen = [table for table in load_tables() if options.number in (None, table.number)]
    runs = [load_measured(path) for path in options.run]
    cost_of = _counting() if options.count else stored_costs
    compared = [(table, add_measured(compare(table, cost_of), runs)) for table in chosen]
    shown = {row.beside for _, rows in compared for row in rows}
    tables = "these tables" if options.number is None else f"table {options.number}"
    for other in (run.run for run in runs if str(run.run) not in shown):
        sys.stderr.write(f"hitdet-nni: {other} has trained no row of {tables}\n")
    if options.markdown is not None:
        update_markdown(options.markdown, compared)
        echo(str(options.markdown))
    elif options.json:
        echo(json_text(plain(compared)))
    else:
        echo(conditions())
        for table, comparisons in compared:
            found = sheet(table, comparisons)
            echo(f"\n{found.title}")
            with telling_output_errors():
                print_table(rich_table(found), sys.stdout)
            for remark in found.remarks:
                echo(f"  {remark}")
        echo(f"\n{FOOTNOTE}\n{summary(compared)}")


def _counting() -> CostOf:
    """Return what counts baselines on mmdet's modules."""
    from hitdet_nni.engine.process import prepare_process

    prepare_process(1)
    from hitdet_nni.cost.mmdet_config import counted_costs

    return counted_costs
