"""The CSV files of a run: one reader and one writer for each, and its columns in one place.

=========================  ==================================================  ======================================
file                       a row                                               columns
=========================  ==================================================  ======================================
``screening/<part>.csv``   an operator in an epoch of screening                the fields of :class:`Score`
``search/alphas.csv``      an architecture parameter after an epoch of search  :data:`ALPHA_COLUMNS`
``search/metrics.csv``     an epoch of search                                  ``epoch``, then what was measured
``metrics.csv``            an epoch of pretraining                             the same
=========================  ==================================================  ======================================

What was measured in an epoch is up to who measures: a new number of ``EpochRecord.metrics`` in
``nas/epoch_record.py`` is a new column of ``metrics.csv``, a chart and a column of the table on the page of the
run, a curve for TensorBoard, and part of what a trial reports to NNI.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hitdet_nni.errors import InputError
from hitdet_nni.io import append_epoch, read_text, whole_lines, write_csv

EpochMetrics = dict[str, float]
"""What was measured in an epoch, by the names of the file's columns."""

ALPHA_COLUMNS = ("epoch", "label", "operator", "alpha", "probability")


@dataclass(frozen=True)
class Score:
    """One active operator at the end of an epoch of screening.

    Attributes:
        epoch: The epoch, from 0.
        operator: Its name, as the file has it.
        score: What it is ranked by.
        rank: Its place among those active, from 1, the best first.
        removed: Whether the end of the epoch removed it.
    """

    epoch: int
    operator: str
    score: float
    rank: int
    removed: bool


SCORE_COLUMNS = tuple(field.name for field in fields(Score))


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


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write the screening scores of a component."""
    write_csv(path, SCORE_COLUMNS, ({**asdict(score), "removed": int(score.removed)} for score in scores))


def read_scores(path: Path) -> tuple[Score, ...]:
    """Read the screening scores of a component, at least one.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    what = "a table of screening scores"
    rows = _rows(path, SCORE_COLUMNS, what)
    if not rows:
        raise InputError(f"is not {what}", source=path, allowed="a row an operator and epoch")
    return tuple(
        Score(
            epoch=_epoch(path, line, row),
            operator=row["operator"],
            score=_number(path, line, row, "score"),
            rank=int(_number(path, line, row, "rank")),
            removed=bool(_number(path, line, row, "removed")),
        )
        for line, row in rows
    )


def append_metrics(path: Path, epoch: int, metrics: Mapping[str, float]) -> None:
    """Add what was measured in an epoch of a search; an epoch that is there already is replaced, with all after it.

    Args:
        path: ``metrics.csv``.
        epoch: The epoch, from 0.
        metrics: The numbers by their names; the same names in every epoch.
    """
    append_epoch(path, epoch, [{"epoch": epoch, **metrics}])


def write_metrics(path: Path, epochs: Sequence[Mapping[str, float]]) -> None:
    """Write what was measured in the epochs of a pretraining.

    Args:
        path: ``metrics.csv``.
        epochs: For each epoch, at least one, its number as ``epoch`` and what was measured; the same names in all.
    """
    write_csv(path, list(epochs[0]), epochs)


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """Read what was measured after each epoch of a search or a pretraining, in the file's order.

    A line without its end is left out.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    metrics = []
    for line, row in _rows(path, ("epoch",), "a table of metrics", grows=True):
        _epoch(path, line, row)
        metrics.append({name: _number(path, line, row, name) for name in row})
    return tuple(metrics)


def append_alphas(
    path: Path,
    epoch: int,
    alphas: Mapping[str, Mapping[str, float]],
    probabilities: Mapping[str, Mapping[str, float]],
) -> None:
    """Add the architecture parameters after an epoch of a search; an epoch that is there already is replaced.

    Args:
        path: ``alphas.csv``.
        epoch: The epoch, from 0.
        alphas: The parameters by layer label and operator.
        probabilities: The weights of the operators in their layers, likewise.
    """
    rows = [
        (epoch, label, name, alpha, probabilities[label][name])
        for label, row in alphas.items()
        for name, alpha in row.items()
    ]
    append_epoch(path, epoch, [dict(zip(ALPHA_COLUMNS, row, strict=True)) for row in rows])


def read_alphas(path: Path) -> AlphaHistory:
    """Read the architecture parameters after each epoch of a search; a last epoch not yet whole is left out.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    history: AlphaHistory = {}
    for line, row in _rows(path, ALPHA_COLUMNS, "a table of alphas", grows=True):
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
    """Return line number and cells of each row; all rows have the columns of the head, at least those given."""
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
