"""Architectures drawn at random, each as likely as any other of the same range of costs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from hitdet_nni.cost.space_costs import SpaceCosts

BINS = 8192
"""Bins of costs up to the largest that is allowed, by which architectures are counted."""

MAX_DRAWS = 20_000
"""Architectures drawn at most, one another's doubles among them, where nothing else is said."""

FEW = 20_000
"""Up to so many architectures of the bins are listed, and not drawn: all of them can be had."""


def draw_within(
    costs: SpaceCosts,
    least: float,
    most: float,
    *,
    seed: int,
    exclude: Iterable[tuple[str, ...]] = (),
    draws: int = MAX_DRAWS,
) -> Iterator[dict[str, str]]:
    """Yield different architectures whose cost is within the limits, until so many were drawn or there are no more.

    Args:
        costs: Costs of the space.
        least: Least cost of the whole detector, as an exact count.
        most: Largest cost.
        seed: Seed of the draws.
        exclude: Architectures that are not to be drawn: operators in the layers' order.
        draws: How many are drawn, where there are more than :data:`FEW`.
    """
    rng = random.Random(seed)
    window = _Window(costs, least, most)
    seen = set(exclude)
    candidates = window.shuffled(rng) if window.count <= FEW else (window.drawn(rng) for _ in range(draws))
    for sample in candidates:
        key = tuple(sample.values())
        if least <= costs.of(sample) <= most and key not in seen:
            seen.add(key)
            yield sample


MOST = 1e200
"""Ways beyond which they are counted in units of so many: a float holds no more than 1e308."""


class _Window:
    """The architectures whose cost is nearly within limits: within the bins that these and their rounding reach.

    Of each layer, from the last to the first, the ways are counted in which the layers from it on end within the
    limits, by the bin of what the layers before it cost. Each operator is drawn by the ways that are left behind it, so
    that all architectures are equally likely.

    Args:
        costs: Costs of the space.
        least: Least cost.
        most: Largest cost.

    Attributes:
        count: How many there are; infinity for more than a float counts.
    """

    def __init__(self, costs: SpaceCosts, least: float, most: float) -> None:
        above = min(most, costs.largest) - costs.least  # what may be spent beyond the cheapest architecture
        self._rows = list(costs.counts.values())
        width = max(1.0, above / BINS)
        self._bins = [
            np.array([int((cost - min(row.values())) / width) for cost in row.values()], dtype=np.int64)
            for row in self._rows
        ]
        last = int(above / width) if above >= 0 else -1
        # What is cut off in each layer adds up to a bin a layer at most.
        first = max(0, int((least - costs.least) / width) - len(self._rows)) if least > costs.least else 0
        ways = np.zeros(last + 1)
        ways[first:] = 1
        self._ways: list[npt.NDArray[np.float64]] = [ways]
        scaled = False
        for bins in reversed(self._bins):
            behind, ways = ways, np.zeros(last + 1)
            for spent in bins[bins <= last]:
                ways[: last + 1 - spent] += behind[spent:]
            if ways.max(initial=0.0) > MOST:  # of a share of them all, which decide as well
                ways /= MOST
                scaled = True
            self._ways.append(ways)
        self._ways.reverse()
        self._labels = list(costs.counts)
        there = float(ways[0]) if last >= 0 else 0.0
        self.count = math.inf if scaled and there else there

    def drawn(self, rng: random.Random) -> dict[str, str]:
        """Return one of them, each as likely as any other; there is one."""
        spent, sample = 0, {}
        for layer, (label, row) in enumerate(zip(self._labels, self._rows, strict=True)):
            sums = self._left(layer, spent).cumsum()
            place = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
            sample[label] = list(row)[place]
            spent += int(self._bins[layer][place])
        return sample

    def shuffled(self, rng: random.Random) -> list[dict[str, str]]:
        """Return all of them, in any order."""
        found: list[tuple[int, tuple[str, ...]]] = [(0, ())]
        for layer, row in enumerate(self._rows):
            names = list(row)
            found = [
                (spent + int(self._bins[layer][place]), (*names_before, names[place]))
                for spent, names_before in found
                for place in np.flatnonzero(self._left(layer, spent))
            ]
        rng.shuffle(found)
        return [dict(zip(self._labels, names, strict=True)) for _, names in found]

    def _left(self, layer: int, spent: int) -> npt.NDArray[np.float64]:
        """Return of each operator of a layer the ways that are left behind it, by what the layers before it cost."""
        behind, after = self._ways[layer + 1], spent + self._bins[layer]
        inside = after < len(behind)
        return np.where(inside, behind[np.where(inside, after, 0)], 0.0) if len(behind) else np.zeros(len(after))
