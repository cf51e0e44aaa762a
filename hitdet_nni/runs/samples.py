"""``samples.csv``: the architectures that were tried in a supernet, in the order in which they were tried."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, write_csv

NUMBERS = ("loss", "total", "gflops", "params_m", "found")
"""Columns of numbers; the others are layers, by their labels."""


@dataclass(frozen=True)
class TriedArchitecture:
    """An architecture that was tried.

    Attributes:
        loss: Mean detection loss by the supernet's weights on held-out images.
        total: The loss with what the cost adds, which is least for the architecture that is found; infinite beyond a
            budget.
        gflops: Cost of the whole detector, in GFLOPs (multiply-adds).
        params_m: Parameters of the whole detector, in millions.
        found: Whether it is the one that is found.
        sample: Operator of every searched layer, by label.
    """

    loss: float
    total: float
    gflops: float
    params_m: float
    found: bool
    sample: Mapping[str, str]


def write_samples(path: Path, tried: Sequence[TriedArchitecture]) -> None:
    """Write the architectures that were tried, at least one."""
    rows = [{**{key: getattr(one, key) for key in NUMBERS}, "found": int(one.found), **one.sample} for one in tried]
    write_csv(path, list(rows[0]), rows)


def read_samples(path: Path) -> tuple[TriedArchitecture, ...]:
    """Read the architectures that were tried, at least one.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
        tried = [_tried(row) for row in rows]
    except (csv.Error, ValueError, TypeError, KeyError):
        tried = []
    if not tried or sum(one.found for one in tried) != 1:
        allowed = f"the columns {', '.join(NUMBERS)} and one for each layer, and one row whose found is 1"
        raise InputError("is not a table of tried architectures", source=path, allowed=allowed)
    return tuple(tried)


def _tried(row: Mapping[str, str]) -> TriedArchitecture:
    numbers = {key: float(row[key]) for key in NUMBERS}
    finite = all(math.isfinite(value) for key, value in numbers.items() if key != "total")
    if not finite or math.isnan(numbers["total"]) or numbers["found"] not in (0, 1):
        raise ValueError("a number is missing")
    sample = {label: name for label, name in row.items() if label not in NUMBERS}
    if not all(isinstance(text, str) and text for pair in sample.items() for text in pair):
        raise ValueError("an operator is missing")
    return TriedArchitecture(**{**numbers, "found": bool(numbers["found"])}, sample=sample)  # type: ignore[arg-type]
