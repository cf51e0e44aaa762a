"""The architectures that were tried in a supernet: loss against cost, and the one that was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hitdet_nni.report import svg
from hitdet_nni.report.axes import Axes, Scale, number, span
from hitdet_nni.runs.samples import TriedArchitecture

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 32, 46

HIGHEST = 0.9
"""Quantile of the losses above which architectures are only counted: one very bad one would flatten all others."""


@dataclass(frozen=True)
class SampleChart:
    """What a page shows of the architectures that were tried.

    Attributes:
        drawing: The chart.
        tried: How many there were.
        above: How many of them are beyond its upper end.
        found: The one that is found.
        number: Its place in the order in which they were tried, from 1.
    """

    drawing: Markup
    tried: int
    above: int
    found: TriedArchitecture
    number: int


def sample_chart(tried: Sequence[TriedArchitecture]) -> SampleChart:
    """Draw the architectures that were tried.

    Args:
        tried: At least one, one of them found.
    """
    place, found = next((place, one) for place, one in enumerate(tried, start=1) if one.found)
    highest = max(float(np.quantile([one.loss for one in tried], HIGHEST)), found.loss)
    shown = [one for one in tried if one.loss <= highest]
    axes = Axes(
        x=Scale(*span(one.gflops for one in shown), LEFT, WIDTH - RIGHT),
        y=Scale(*span(one.loss for one in shown), HEIGHT - BOTTOM, TOP),
        x_label="GFLOPs (multiply-adds)",
        y_label="detection loss in the supernet",
        whole=False,
    )
    parts = axes.frame()
    for one in sorted(shown, key=lambda one: one.found):
        title = svg.element("title", f"loss {number(one.loss)}, {number(one.gflops)} GFLOPs")
        look = "point best" if one.found else "point"
        dot = svg.element("circle", cx=axes.x(one.gflops), cy=axes.y(one.loss), r=6 if one.found else 4, class_=look)
        parts.append(svg.element("g", title, dot))
    label = (
        f"loss against GFLOPs of {len(shown)} architectures; the found one has loss {number(found.loss)} and "
        f"{number(found.gflops)} GFLOPs"
    )
    return SampleChart(svg.drawing(WIDTH, HEIGHT, label, *parts), len(tried), len(tried) - len(shown), found, place)
