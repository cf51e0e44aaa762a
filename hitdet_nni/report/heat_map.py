"""The architecture parameters over epochs: one table of layers and operators a component, its cells coloured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hitdet_nni.config.skeleton import COMPONENTS, component_of, label_parts
from hitdet_nni.report.operator_text import family_of
from hitdet_nni.runs.tables import Alpha, AlphaHistory

MAX_VALUES = 120_000
"""Probabilities that a page holds at most; of a longer search it shows fewer epochs."""

DARK = 0.6
"""Share of the full colour from which a cell's number is written in the other colour."""


@dataclass(frozen=True)
class Cell:
    """One operator of one layer.

    Attributes:
        title: Layer, operator, probability and parameter, in words.
        text: The probability in two digits.
        share: Share of the full colour.
        strongest: Whether no operator of the layer has a larger probability.
        known: Whether the file has a value.
    """

    title: str
    text: str
    share: float
    strongest: bool
    known: bool = True

    @property
    def classes(self) -> str:
        """Classes in the style sheet."""
        states = (("dark", self.share > DARK), ("best", self.strongest), ("none", not self.known))
        return " ".join(name for name, holds in states if holds)


@dataclass(frozen=True)
class HeatMap:
    """A component's parameters.

    Attributes:
        component: The component.
        layers: Layer labels without the component, e.g. ``l07``, in order.
        rows: Operator, its family and its cell in each layer, after the last epoch.
        peak: Probability that has the full colour.
    """

    component: str
    layers: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]
    peak: float


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of all components.

    Attributes:
        epochs: The epochs that the slider goes over, from 1.
        all_epochs: Number of epochs that the file has.
        maps: One a component.
        values: What the slider needs: by epoch and component the cells' titles' numbers, row by row.
    """

    epochs: tuple[int, ...]
    all_epochs: int
    maps: tuple[HeatMap, ...]
    values: list[dict[str, list[list[float] | None]]]


def heat_maps(history: AlphaHistory) -> HeatMaps:
    """Draw the heat maps of a search.

    Args:
        history: The parameters after at least one epoch.
    """
    layers: dict[str, list[str]] = {}
    operators: dict[str, list[str]] = {}
    for epoch in history.values():
        for label, row in epoch.items():
            component = component_of(label)
            _note(layers, component, [label])
            _note(operators, component, row)
    layers = {name: layers[name] for name in (*COMPONENTS, *layers) if name in layers}
    epochs = _shown(sorted(history), sum(len(layers[name]) * len(operators[name]) for name in layers))
    peaks = {
        component: max(
            (
                alpha.probability
                for epoch in epochs
                for label in labels
                for alpha in history[epoch].get(label, {}).values()
            ),
            default=1.0,
        )
        or 1.0
        for component, labels in layers.items()
    }
    last = history[epochs[-1]]
    maps = tuple(
        HeatMap(
            component,
            tuple(label_parts(label)[1] or label for label in labels),
            tuple(
                (
                    name,
                    family_of(name),
                    tuple(_cell(label, name, last.get(label, {}), peaks[component]) for label in labels),
                )
                for name in operators[component]
            ),
            peaks[component],
        )
        for component, labels in layers.items()
    )
    values = [
        {
            component: [
                _values(history[epoch].get(label, {}).get(name)) for name in operators[component] for label in labels
            ]
            for component, labels in layers.items()
        }
        for epoch in epochs
    ]
    return HeatMaps(tuple(epoch + 1 for epoch in epochs), len(history), maps, values)


def _note(found: dict[str, list[str]], component: str, names: Any) -> None:
    seen = found.setdefault(component, [])
    seen += [name for name in names if name not in seen]


def _shown(epochs: Sequence[int], cells: int) -> list[int]:
    """Choose epochs evenly spaced, the last among them, so that there are not too many values."""
    count = max(1, min(len(epochs), MAX_VALUES // max(1, cells)))
    return [epochs[-1 - round(k * (len(epochs) - 1) / max(1, count - 1))] for k in reversed(range(count))]


def _cell(label: str, name: str, row: dict[str, Alpha], peak: float) -> Cell:
    alpha = row.get(name)
    if alpha is None:
        return Cell(f"{label}, {name}: no value", "", 0.0, strongest=False, known=False)
    probability, parameter = _values(alpha) or (0.0, 0.0)
    return Cell(
        f"{label}, {name}: probability {probability:.4f}, alpha {parameter:.4f}",
        f"{probability:.2f}".removeprefix("0"),
        alpha.probability / peak,
        strongest=alpha.probability == max(each.probability for each in row.values()),
    )


def _values(alpha: Alpha | None) -> list[float] | None:
    return None if alpha is None else [round(alpha.probability, 4), round(alpha.alpha, 4)]
