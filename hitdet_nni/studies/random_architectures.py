"""Architectures drawn at random from a search space, of a given cost."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.budget_settings import BudgetKey, BudgetSettings
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable
from hitdet_nni.cost.random_draws import draw_within
from hitdet_nni.cost.space_costs import SpaceCosts
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.errors import InputError
from hitdet_nni.nas.checks import budget_cost_model, check_budget
from hitdet_nni.nas.provenance import describe_architecture

logger = logging.getLogger(__name__)

SLACKS = (0.1, 0.2, 0.4, 1.0)
"""Random architectures cost at most the first of these shares less than the budget; where that has too few, the
next."""


def drawn_samples(
    model: CostModel,
    space: Mapping[Component, Sequence[str]],
    count: int,
    *,
    least: float = 0,
    most: float = math.inf,
    unit: BudgetKey = "gflops",
    seed: int = 0,
    exclude: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """Return different architectures, each as likely as any other of the space whose cost is within the limits.

    Args:
        model: Costs of all layers.
        space: Candidate names of each component.
        count: How many to draw.
        least: Least cost of the whole detector, in FLOPs (multiply-adds), parameters or nanoseconds.
        most: Largest cost.
        unit: What the limits count.
        seed: Seed of the draws.
        exclude: Architectures that are not to be drawn.

    Returns:
        Operator name of each searched layer by its label, in the order of drawing; fewer than ``count`` where there are
        fewer.
    """
    costs = SpaceCosts(model, space, unit)
    without = {tuple(sample[label] for label in costs.counts) for sample in exclude}
    return list(itertools.islice(draw_within(costs, least, most, seed=seed, exclude=without), count))


def require_samples(samples: Sequence[Mapping[str, str]], count: int, key: str, allowed: str) -> None:
    """Refuse fewer architectures than are asked for.

    Args:
        samples: Those that were drawn.
        count: How many are asked for.
        key: What asks for them.
        allowed: What would help.

    Raises:
        InputError: If there are fewer.
    """
    if len(samples) < count:
        problem = f"{len(samples)} of {count} random architectures were found"
        raise InputError(problem, key=key, allowed=allowed)


def samples_of_cost(
    model: CostModel,
    space: Mapping[Component, Sequence[str]],
    count: int,
    most: int,
    slack: float,
    *,
    unit: BudgetKey = "gflops",
    seed: int = 0,
    exclude: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """Return as many of what :func:`drawn_samples` returns, for a study with ``--architectures`` and ``--slack``.

    Args:
        model: Costs of all layers.
        space: Candidate names of each component.
        count: How many to draw.
        most: Largest cost.
        slack: Share of it that they cost less, at most.
        unit: What ``most`` counts.
        seed: Seed of the draws.
        exclude: Architectures that are not to be drawn.

    Raises:
        InputError: If hardly as many cost that.
    """
    least = (1 - slack) * most
    found = drawn_samples(model, space, count, least=least, most=most, unit=unit, seed=seed, exclude=exclude)
    none = "a larger --slack, or a run that found more than the cheapest: too few architectures cost so little"
    require_samples(found, count, "--architectures", "fewer architectures, or a larger --slack" if found else none)
    return found


def samples_within(
    model: CostModel,
    space: Mapping[Component, Sequence[str]],
    budget: BudgetSettings,
    count: int,
    seed: int,
    key: str | None = "--randoms",
) -> list[dict[str, str]]:
    """Return different random architectures that fill a budget: of those within it that cost at most a share less.

    That is the first share of :data:`SLACKS` with which as many are found.

    Args:
        model: Costs of all layers.
        space: Candidate names of each component.
        budget: What each may cost.
        count: How many.
        seed: Seed of the draws.
        key: What asks for so many, for messages; ``None``: where there are fewer all of them are returned.

    Returns:
        Operator name of each searched layer by its label, in the order of drawing.

    Raises:
        InputError: If the space has fewer within the budget.
    """
    most = budget.limit * UNITS[budget.key].scale
    for slack in SLACKS:
        least = (1 - slack) * most
        found = drawn_samples(model, space, count, least=least, most=most, unit=budget.key, seed=seed)
        if len(found) == count:
            break
        if slack < SLACKS[-1]:
            logger.warning("fewer than %d architectures cost at most %.0f %% less than the budget", count, 100 * slack)
    if key is not None:
        require_samples(found, count, key, "fewer, or a larger search.budget")
    return found


def detectors_within(
    settings: Settings,
    space: Mapping[Component, Sequence[str]],
    budget: BudgetSettings,
    classes: tuple[str, ...],
    count: int,
    seed: int,
    key: str | None = "--randoms",
) -> list[Architecture]:
    """Return different random architectures that fill a budget, as :func:`samples_within` draws them.

    Args:
        settings: Give the skeleton.
        space: Candidate names of each component.
        budget: What each may cost.
        classes: Class names, in label order.
        count: How many.
        seed: Seed of the draws.
        key: What asks for so many, for messages; ``None``: where there are fewer all of them are returned.

    Raises:
        InputError: If the space has fewer within the budget, or a table of latencies is bad.
    """
    model = budget_cost_model(settings.skeleton, len(classes), budget)
    samples = samples_within(model, space, budget, count, seed, key)
    return _described(samples, settings, space, classes, model.latency)


@dataclass(frozen=True)
class RandomDraw:
    """Random architectures that a training chooses among, drawn when the classes of the data are known.

    Attributes:
        count: How many.
    """

    count: int

    def __str__(self) -> str:
        return f"{self.count} random architectures"

    def drawn(self, settings: Settings, data: DetectionData) -> list[Architecture]:
        """Return them: they fill ``search.budget``, or have any cost where there is none.

        Args:
            settings: Give space, skeleton, budget and the seed of the draws.
            data: The images.

        Raises:
            InputError: If the space is not there, or has hardly as many within the budget.
        """
        space, budget, key = load_search_space(settings.space), settings.search.budget, "--random"
        if budget is not None:
            check_budget(space, settings, len(data.classes))
            return detectors_within(settings, space, budget, data.classes, self.count, settings.seed, key)
        return random_detectors(settings, space, data.classes, self.count, key)


def random_detectors(
    settings: Settings,
    space: Mapping[Component, Sequence[str]],
    classes: tuple[str, ...],
    count: int,
    key: str,
    exclude: Sequence[Mapping[str, str]] = (),
) -> list[Architecture]:
    """Return different architectures of a space, of any cost, each as likely as any other, by the settings' seed.

    Args:
        settings: Give the skeleton and the seed.
        space: Candidate names of each component.
        classes: Class names, in label order.
        count: How many.
        key: What asks for so many, for messages.
        exclude: Architectures that are not to be drawn.

    Raises:
        InputError: If the space has hardly as many.
    """
    model = CostModel(settings.skeleton, len(classes))
    samples = drawn_samples(model, space, count, seed=settings.seed, exclude=exclude)
    require_samples(samples, count, key, "fewer, or a larger space")
    return _described(samples, settings, space, classes)


def _described(
    samples: Sequence[Mapping[str, str]],
    settings: Settings,
    space: Mapping[Component, Sequence[str]],
    classes: tuple[str, ...],
    latency: LatencyTable | None = None,
) -> list[Architecture]:
    return [
        describe_architecture(
            f"random-{number:02d}", sample, space, settings, classes, source="random", latency=latency
        )
        for number, sample in enumerate(samples, 1)
    ]
