"""``profile`` and ``tables``: what detectors cost."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.table import Table

from hitdet_nni.commands.console import console, say
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.cost.cost_model import PARTS, Cost, CostModel
from hitdet_nni.cost.profile import Profile, baseline_names, find_config, is_config
from hitdet_nni.cost.stored_costs import stored_costs
from hitdet_nni.engine.process import prepare_process
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
from hitdet_nni.paper_tables.tables import CostOf, compare, load_tables
from hitdet_nni.runs.run_directory import find_run


def profile(options: Namespace) -> None:
    """``profile``: parameters and FLOPs by part, and by layer where asked for.

    Raises:
        InputError: If a size or a number of proposals is not positive, or ``--layers`` is of an mmdet config.
    """
    for name, value in (("--shape", min(options.shape or [32])), ("--proposals", options.proposals)):
        if value is not None and value < 1:
            raise InputError(f"got {value}", source=name, allowed="positive numbers")
    shape = tuple(options.shape) if options.shape else None
    rows: list[tuple[str, str, str, Cost]] = []
    if is_config(options.target):
        if options.layers:
            raise InputError("lists the layers of architectures only", source="--layers", allowed="an architecture")
        find_config(options.target)
        from hitdet_nni.cost.mmdet_config import profile_config

        found = profile_config(options.target, shape, options.proposals, options.convention)
    else:
        architecture = _architecture_to_profile(options.target)
        model = CostModel(
            architecture.skeleton,
            architecture.num_classes,
            shape=shape,
            proposals=options.proposals,
            convention=options.convention,
        )
        costs = model.architecture(architecture.sample)
        found = Profile(architecture.name, model.shape, model.proposals, model.convention, costs)
        rows += model.rows(architecture.sample) if options.layers else []
    if options.proposals and not found.proposals:
        sys.stderr.write(f"hitdet-nni: {found.name} has one stage and no RoIs: --proposals changes nothing\n")
    if options.json:
        say(json.dumps(_profile_values(found, rows if options.layers else None), indent=2))
    else:
        console().print(_profile_table(found, rows))


def _architecture_to_profile(target: str) -> Architecture:
    path = Path(target)
    try:
        return load_architecture(find_run(path).architecture if path.is_dir() else target)
    except InputError as error:
        if error.allowed is None or path.suffix or path.name != target or path.exists():
            raise
        allowed = [error.allowed, *baseline_names()]
        raise InputError(error.problem, source=error.source, key=error.key, allowed=allowed) from None


def _profile_values(found: Profile, rows: list[tuple[str, str, str, Cost]] | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "convention": found.convention,
        "shape": list(found.shape),
        "proposals": found.proposals,
        "params": {part: cost.params for part, cost in found.costs.items()},
        "flops": {part: cost.flops for part, cost in found.costs.items()},
    }
    if rows is not None:
        result["layers"] = [
            {"part": part, "layer": layer, "operator": name, "params": cost.params, "flops": cost.flops}
            for part, layer, name, cost in rows
        ]
    return result


def _profile_table(found: Profile, rows: list[tuple[str, str, str, Cost]]) -> Table:
    lines = [(layer, name, cost) for _, layer, name, cost in rows]
    lines += [(part, "", found.costs[part]) for part in (*PARTS, "total")]
    height, width = found.shape
    table = Table(title=f"{found.name}, {height} x {width}, {found.proposals} proposals, {found.convention}")
    for heading in ("part", "operator"):
        table.add_column(heading)
    for heading in ("params (M)", "FLOPs (G)"):
        table.add_column(heading, justify="right")
    for part, name, cost in lines:
        table.add_row(part, name, f"{cost.params / 1e6:.3f}", f"{cost.flops / 1e9:.3f}")
    return table


def tables_command(options: Namespace) -> None:
    """``tables``: the paper's cost tables, published beside ours: those of baselines as they were counted and stored.

    Raises:
        InputError: If ``--markdown`` is given together with a table's number or ``--json``.
    """
    if options.markdown is not None and (options.number is not None or options.json):
        raise InputError("writes all tables", source="--markdown", allowed="neither a number nor --json")
    chosen = [table for table in load_tables() if options.number in (None, table.number)]
    runs = [load_measured(path) for path in options.run]
    cost_of = _counting() if options.count else stored_costs
    compared = [(table, add_measured(compare(table, cost_of), runs)) for table in chosen]
    if options.markdown is not None:
        update_markdown(options.markdown, compared)
        say(str(options.markdown))
    elif options.json:
        say(json.dumps(plain(compared), indent=2))
    else:
        say(conditions())
        for table, comparisons in compared:
            found = sheet(table, comparisons)
            say(f"\n{found.title}")
            print_table(rich_table(found), sys.stdout)
            for remark in found.remarks:
                say(f"  {remark}")
        say(f"\n{FOOTNOTE}\n{summary(compared)}")


def _counting() -> CostOf:
    """What counts baselines on mmdet's modules."""
    prepare_process(1)
    from hitdet_nni.cost.mmdet_config import counted_costs

    return counted_costs
