"""The CSV files of a run directory as checked values."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, whole_lines

EpochMetrics = dict[str, float]
"""What was measured in an epoch, by the names of the file's columns."""


@dataclass(frozen=True)
class Score:
    """One operator in the race at the end of an epoch of screening.

    Attributes:
        epoch: The epoch, from 0.
        operator: Its name, as the file has it.
        score: What it is ranked by.
        removed: Whether the end of the epoch removed it.
    """

    epoch: int
    operator: str
    score: float
    removed: bool


@dataclass(frozen=True)
class Alpha:
    """One architecture parameter after an epoch of the search.

    Attributes:
        alpha: The parameter.
        probability: The weight that its operator has in the layer.
    """

    alpha: float
    probability: float


AlphaHistory = dict[int, dict[str, dict[str, Alpha]]]
"""Architecture parameters by epoch (from 0), layer label and operator."""


def read_scores(path: Path) -> tuple[Score, ...]:
    """The screening scores of a component.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    rows = _rows(path, ("epoch", "operator", "score", "removed"), "a table of screening scores")
    scores = []
    for line, row in rows:
        removed = _number(path, line, row, "removed")
        scores.append(Score(_epoch(path, line, row), row["operator"], _number(path, line, row, "score"), bool(removed)))
    return tuple(scores)


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """What was measured after each epoch of a search, in the order of the file; a line without its end is left out.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    metrics = []
    for line, row in _rows(path, ("epoch",), "a table of metrics", grows=True):
        _epoch(path, line, row)
        metrics.append({name: _number(path, line, row, name) for name in row})
    return tuple(metrics)


def read_alphas(path: Path) -> AlphaHistory:
    """The architecture parameters after each epoch of a search; a last epoch that is still being written is left out.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    history: AlphaHistory = {}
    columns = ("epoch", "label", "operator", "alpha", "probability")
    for line, row in _rows(path, columns, "a table of alphas", grows=True):
        probability = _number(path, line, row, "probability")
        if not 0 <= probability <= 1:
            raise _damage(path, line, "probability", row["probability"], "a number from 0 to 1")
        layers = history.setdefault(_epoch(path, line, row), {})
        layers.setdefault(row["label"], {})[row["operator"]] = Alpha(_number(path, line, row, "alpha"), probability)
    if len(history) > 1:
        (_, before), (epoch, last) = list(history.items())[-2:]
        if sum(map(len, last.values())) < sum(map(len, before.values())):
            del history[epoch]
    return history


def _rows(path: Path, columns: tuple[str, ...], what: str, *, grows: bool = False) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row; every row has all columns of the head, which are at least those given."""
    try:
        text = read_text(path)
        reader = csv.DictReader(whole_lines(text) if grows else text.splitlines(), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"is not {what} ({error})", source=path) from None
    found = reader.fieldnames or []
    if not set(columns) <= set(found):
        raise InputError(f"is not {what}", source=path, allowed=f"the columns {', '.join(columns)}")
    for line, row in rows:
        if None in row or None in row.values():
            raise InputError(f"line {line} has not as many cells as the first line", source=path)
    return rows


def _epoch(path: Path, line: int, row: Mapping[str, str]) -> int:
    text = row["epoch"]
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise _damage(path, line, "epoch", text, "a whole number from 0")
    return int(text)


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _damage(path, line, column, row[column], "a finite number")
    return value


def _damage(path: Path, line: int, column: str, text: str, allowed: str) -> InputError:
    return InputError(f"line {line}: got {text[:100]!r}", source=path, key=column, allowed=allowed)
