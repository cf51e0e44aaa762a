"""``front/``: the architectures of a supernet that no other one beats in loss and cost, and those that were tried."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.budget_settings import BUDGET_KEYS, BudgetKey
from hitdet_nni.cost.units import UNITS
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_text, write_csv

NUMBERS = ("loss", "gflops", "params_m", "latency_ms")
COLUMNS = ("name", "origin", *NUMBERS, "unit", "on_front")
"""Columns of ``front.csv``; the others are layers, by their labels."""

FILLED = 0.9
"""Share of a budget from which on an architecture fills it."""


@dataclass(frozen=True)
class FrontRow:
    """An architecture that was compared with the others at the end.

    Attributes:
        name: Its name, and that of its file.
        origin: How it came to be there: it is what the ``"search"`` found, architecture ``"parameters"`` decide it
            within a cost, it is a ``"sample"`` that was tried, what the model of the samples' losses takes for the
            best within a cost (``"model"``), one of the ``"random"`` ones that fill a budget, or one that only an
            ``"earlier"`` call, for other costs, compared.
        loss: Mean detection loss by the supernet's weights, on images that had no part in the choice among samples.
        gflops: Cost of the whole detector, in GFLOPs (multiply-adds).
        params_m: Parameters of the whole detector, in millions.
        latency_ms: Milliseconds of an image, where there is a table.
        unit: The unit of the costs that the front is of.
        on_front: Whether no other one beats it.
        sample: Operator of every searched layer, by label.
    """

    name: str
    origin: str
    loss: float
    gflops: float
    params_m: float
    latency_ms: float | None
    unit: BudgetKey
    on_front: bool
    sample: Mapping[str, str]

    @property
    def cost(self) -> float:
        """Its cost in the front's unit."""
        return float(getattr(self, self.unit))


def write_front(path: Path, rows: Sequence[FrontRow]) -> None:
    """Write the architectures that were compared, at least one."""
    lines = [
        {**{key: getattr(row, key) for key in COLUMNS}, "on_front": int(row.on_front)}
        | {"latency_ms": "" if row.latency_ms is None else row.latency_ms}
        | dict(row.sample)
        for row in rows
    ]
    write_csv(path, list(lines[0]), lines)


def read_front(path: Path) -> tuple[FrontRow, ...]:
    """Read the architectures that were compared, at least one.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    try:
        rows = [_row(line) for line in csv.DictReader(read_text(path).splitlines(), strict=True)]
    except (csv.Error, ValueError, TypeError, KeyError):
        rows = []
    if not rows or not any(row.on_front for row in rows) or len({row.name for row in rows}) < len(rows):
        allowed = f"the columns {', '.join(COLUMNS)} and one for each layer, different names, and a row on the front"
        raise InputError("is not a table of a front", source=path, allowed=allowed)
    return tuple(rows)


def chosen_point(rows: Sequence[FrontRow], limit: float) -> FrontRow:
    """Return the architecture on a front with the least loss within a cost.

    Args:
        rows: The front, and what was compared with it.
        limit: The cost, in the front's unit.

    Raises:
        InputError: If the cheapest costs more.
    """
    within = [row for row in rows if row.on_front and row.cost <= limit]
    if not within:
        least = min((row for row in rows if row.on_front), key=lambda row: row.cost)
        problem = f"{limit:g} {UNITS[least.unit].name} is less than any architecture of the front has"
        raise InputError(problem, key="--budget", allowed=f"{least.cost:.15g} or more")
    return min(within, key=lambda row: row.loss)


def points_within(rows: Sequence[FrontRow], limit: float, count: int) -> list[FrontRow]:
    """Return the architectures within a cost of which trainings are to choose.

    A half are those of the least losses, what :func:`chosen_point` takes first; the other half those of the least
    losses among what costs at most a tenth less than is allowed. Where one half has too few the other has more.

    Args:
        rows: The front, and what was compared with it.
        limit: The cost, in the front's unit.
        count: How many at most.

    Raises:
        InputError: If the cheapest costs more.
    """
    first = chosen_point(rows, limit)
    others = sorted((row for row in rows if row.cost <= limit and row is not first), key=lambda row: row.loss)
    by_loss = [first, *others]
    least = by_loss[: math.ceil(count / 2)]
    filling = [row for row in by_loss[len(least) :] if row.cost >= FILLED * limit][: count // 2]
    chosen = [*least, *filling]
    return [*chosen, *(row for row in by_loss if row not in chosen)][:count]


def _row(line: Mapping[str, str]) -> FrontRow:
    numbers = {key: float(line[key]) if key != "latency_ms" or line[key] else None for key in NUMBERS}
    if not all(value is None or math.isfinite(value) for value in numbers.values()) or line["on_front"] not in (
        "0",
        "1",
    ):
        raise ValueError("a number is missing")
    sample = {label: name for label, name in line.items() if label not in COLUMNS}
    if line["unit"] not in BUDGET_KEYS or numbers[line["unit"]] is None:
        raise ValueError("the costs of the front are missing")
    if not line["name"] or not all(isinstance(text, str) and text for pair in sample.items() for text in pair):
        raise ValueError("a word is missing")
    text = {key: line[key] for key in ("name", "origin", "unit")}
    return FrontRow(**text, **numbers, on_front=line["on_front"] == "1", sample=sample)  # type: ignore[arg-type]


class KnownLosses:
    """Losses of architectures in a file, so that what was computed before an interruption is not computed again.

    Args:
        path: The file, which need not be there.
        labels: The layers, in order.

    Raises:
        InputError: If the file is there and not one of these layers.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path
        self.labels = tuple(labels)
        self.losses: dict[tuple[str, tuple[str, ...]], float] = {}
        if path.exists():
            try:
                for line in csv.DictReader(read_text(path).splitlines(), strict=True):
                    self.losses[line["images"], self._key(line)] = float(line["loss"])
            except (csv.Error, ValueError, TypeError, KeyError):
                allowed = f"the columns images, loss and {', '.join(self.labels)}, or --force"
                raise InputError("is not a table of losses of this run", source=path, allowed=allowed) from None

    def get(self, images: str, sample: Mapping[str, str]) -> float | None:
        """Return the loss of an architecture on some images, ``None`` where it is not known."""
        return self.losses.get((images, self._key(sample)))

    def architectures(self, images: str) -> list[tuple[str, ...]]:
        """Return the operators, in the layers' order, of the architectures whose loss on some images is known."""
        return [key for of_images, key in self.losses if of_images == images]

    def add(self, images: str, samples: Sequence[Mapping[str, str]], losses: Sequence[float], *, write: bool) -> None:
        """Keep losses.

        Args:
            images: The images, in words; others give other losses.
            samples: The architectures.
            losses: Their losses.
            write: Whether this process writes the file.
        """
        self.losses.update({(images, self._key(one)): loss for one, loss in zip(samples, losses, strict=True)})
        if write:
            rows = [
                {"images": images, "loss": loss, **dict(zip(self.labels, key, strict=True))}
                for (images, key), loss in self.losses.items()
            ]
            write_csv(self.path, ["images", "loss", *self.labels], rows)

    def _key(self, sample: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(sample[label] for label in self.labels)
