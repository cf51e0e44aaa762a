"""Axes of a chart: numbers to positions, round ticks, the frame with its labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hitdet_nni.report import svg


@dataclass(frozen=True)
class Scale:
    """Maps numbers to positions along an axis.

    Attributes:
        low: Least number.
        high: Largest number, above ``low``.
        start: Place of ``low``.
        end: Place of ``high``.
        log: Whether equal ratios are equally long; ``low`` is above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a number."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        """Return at most about ``count`` round numbers within the scale.

        Args:
            count: How many there is room for.
            whole: Only whole numbers, as of epochs.
        """
        if self.log:
            exponents = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**exponent for exponent in exponents[:: max(1, -(-len(exponents) // count))]]
        step = round_step((self.high - self.low) / count)
        if whole:
            step = max(1.0, step)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """Return the least of 1, 2 or 5 times a power of ten that is not below a positive number."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def span(values: Iterable[float], *, zero: bool = False, log: bool = False) -> tuple[float, float]:
    """Return the least and the largest of some numbers with room around them, never equal.

    Args:
        values: At least one number.
        zero: Begin at 0, if no number is below.
        log: Whether the numbers, all above 0, are for a logarithmic scale.
    """
    found = list(values)
    low, high = min(found), max(found)
    if log:
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** max(
            math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1
        )
    if zero and low >= 0:
        return 0.0, 1.06 * high or 1.0
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def number(value: float) -> str:
    """Write a number for people: four significant digits, or all before the point; no exponent for large ones."""
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e12 else f"{value:.4g}"


@dataclass(frozen=True)
class Axes:
    """A plot's two scales and what their numbers are.

    Attributes:
        x: Scale of the horizontal axis.
        y: Scale of the vertical axis; its start is the lower end.
        x_label: Quantity and unit.
        y_label: Quantity and unit.
        whole: Whether only whole numbers have a meaning on the horizontal axis.
    """

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    whole: bool = True

    def frame(self) -> list[Markup]:
        """Draw grid, ticks and labels."""
        parts = []
        for value in self.y.ticks(5):
            place = self.y(value)
            parts.append(svg.line(self.x.start, place, self.x.end, place, "grid"))
            parts.append(svg.text(number(value), self.x.start - 6, place + 4, anchor="end", class_="tick"))
        for value in self.x.ticks(6, whole=self.whole):
            place = self.x(value)
            parts.append(svg.line(place, self.y.start, place, self.y.start + 4, "axis"))
            parts.append(svg.text(number(value), place, self.y.start + 17, anchor="middle", class_="tick"))
        parts.append(svg.line(self.x.start, self.y.start, self.x.end, self.y.start, "axis"))
        middle = (self.x.start + self.x.end) / 2
        parts.append(svg.text(self.x_label, middle, self.y.start + 34, anchor="middle", class_="label"))
        parts.append(svg.text(self.y_label, 2.0, self.y.end - 15, class_="label"))
        return parts

    def path(self, points: Sequence[tuple[float, float]], class_: str) -> Markup:
        """Draw a line through points."""
        positions = " ".join(f"{svg.plain(self.x(x))},{svg.plain(self.y(y))}" for x, y in points)
        return svg.element("polyline", points=positions, class_=class_)
