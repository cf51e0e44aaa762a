"""Architectures drawn at random, each as likely as any other of the same range of costs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from hitdet_nni.cost.space_costs import SpaceCosts

MAX_DRAWS = 200_000
"""Architectures drawn at most, where nothing else is said."""


def draw_within(
    costs: SpaceCosts,
    least: float,
    most: float,
    *,
    seed: int,
    exclude: Iterable[tuple[str, ...]] = (),
    draws: int = MAX_DRAWS,
) -> Iterator[dict[str, str]]:
    """Yield different architectures whose cost is within the limits, until so many were drawn.

    Args:
        costs: Costs of the space.
        least: Least cost of the whole detector, as an exact count.
        most: Largest cost.
        seed: Seed of the draws.
        exclude: Architectures that are not to be drawn: operators in the layers' order.
        draws: How many are drawn; a share of them is within the limits.
    """
    rng = random.Random(seed)
    names = {label: list(row) for label, row in costs.counts.items()}
    seen = set(exclude)
    for _ in range(draws):
        sample = {label: rng.choice(row) for label, row in names.items()}
        key = tuple(sample.values())
        if least <= costs.of(sample) <= most and key not in seen:
            seen.add(key)
            yield sample
