"""``front``: from the supernet of a finished search to architectures of every cost."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from hitdet_nni.runs.front import FrontRow

HELP_ORDER = 57
HELP = "find architectures of every cost in the supernet of a finished search, without training"
EXAMPLE = "hitdet-nni front runs/mine --budget 0.05 0.1"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``front``."""
    parser.add_argument("out", type=Path, metavar="RUN", help="run directory of the search; the front is written there")
    parser.add_argument(
        "--cost",
        choices=["gflops", "params_m", "latency_ms"],
        help="unit of the cost (default: that of the search's budget, else gflops)",
    )
    parser.add_argument(
        "--budget", type=float, nargs="+", default=[], metavar="COST", help="costs at which one is wanted besides"
    )
    parser.add_argument("--table", type=Path, help="file of `latency` (default: that of the search)")
    parser.add_argument(
        "--samples",
        type=int,
        default=192,
        help="architectures tried, and a third as many that fill the budgets (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=96,
        help="images that they are tried on, of the half for architecture parameters; the best are compared on as many "
        "others (default: %(default)s, at most half of them)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--force", action="store_true", help="remove the front that is there")
    group.add_argument("--resume", action="store_true", help="go on exactly where an earlier call stopped")
    add_json(parser)


def run(options: Namespace) -> None:
    """Try architectures, compare the best, and write the front.

    Raises:
        InputError: If the search has not ended, an option is out of range, or a front is there.
    """
    from dataclasses import asdict

    from hitdet_nni.commands.shared.console import echo, json_text, show
    from hitdet_nni.commands.shared.stages import front_unit, run_front
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.config.settings import load_settings
    from hitdet_nni.engine import distributed
    from hitdet_nni.runs.run_directory import find_run

    found = find_run(options.out)
    architecture = load_architecture(found.require(found.architecture, "search"))
    key, table = front_unit(found, load_settings(found.config), options.cost, options.table)
    rows = run_front(
        found,
        key,
        options.budget,
        table,
        options.samples,
        options.images,
        force=options.force,
        resume=options.resume,
        as_json=options.json,
    )
    if not distributed.launched_as_main():
        return
    if options.json:
        echo(json_text([asdict(row) for row in rows]))
        return
    show(_table(rows, architecture.sample, options.budget))
    echo(str(found.front_table))


def _table(rows: Sequence[FrontRow], searched: dict[str, str], budgets: Sequence[float]) -> Table:
    from rich.table import Table

    from hitdet_nni.runs.front import chosen_point

    chosen = {budget: chosen_point(rows, budget) for budget in budgets}
    table = Table(title="front of the supernet, by loss on other images than its samples were tried on")
    timed = rows[0].latency_ms is not None
    for heading in ("architecture", "from"):
        table.add_column(heading)
    for heading in ("loss", "GFLOPs", "params (M)", *(["ms"] if timed else [])):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.on_front or row.sample == searched:
            times = [f"{row.latency_ms:.3f}"] if timed else []
            about = ["the search's"] if row.sample == searched else []
            about += [f"the best within {budget:g}" for budget, best in chosen.items() if best is row]
            name = f"{row.name} ({', '.join(about)})" if about else row.name
            table.add_row(name, row.origin, f"{row.loss:.4f}", f"{row.gflops:.4g}", f"{row.params_m:.4g}", *times)
    return table
