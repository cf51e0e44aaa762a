"""Count what the shipped baselines of the paper's tables cost, and store it: ``python docs/counted_costs.py``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hitdet_nni.cost.mmdet_config import counted_costs
from hitdet_nni.cost.profile import PAPER_SHAPE
from hitdet_nni.cost.stored_costs import FILE, size_name
from hitdet_nni.io import write_json
from hitdet_nni.paper_tables.tables import load_tables

BASELINES = Path(__file__).resolve().parents[1] / "baselines"


def counted() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Parameters and FLOPs by baseline, input size and part."""
    found: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for row in (row for table in load_tables() for row in table.rows):
        if row.baseline is not None:
            for shape in (PAPER_SHAPE, *(() if row.variant is None else (row.variant.shape,))):
                costs = counted_costs(row.baseline, shape)
                sizes = found.setdefault(row.baseline, {})
                sizes[size_name(shape)] = {part: asdict(cost) for part, cost in costs.items()}
    return dict(sorted(found.items()))


if __name__ == "__main__":
    write_json(BASELINES / FILE, counted())
