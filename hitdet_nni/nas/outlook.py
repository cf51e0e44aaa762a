"""What a search will be about and how long it goes on, before its first step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import SearchSpace, layer_candidates
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.space_costs import SpaceCosts
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.sampling import steps_an_epoch
from hitdet_nni.data.sources import DetectionData, num_trained
from hitdet_nni.engine import distributed
from hitdet_nni.nas.screening import screening_groups, screening_stage
from hitdet_nni.nas.screening_reliability import num_supernets, share_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CostRange:
    """What the architectures of a space cost, in one unit.

    Attributes:
        least: The cheapest one's cost.
        uniform: The mean over all architectures, each counted once.
        largest: The dearest one's.
    """

    least: float
    uniform: float
    largest: float


@dataclass(frozen=True)
class Outlook:
    """What a search chooses from.

    Attributes:
        architectures: How many architectures the space has.
        costs: What they cost by unit; milliseconds where the cost model has a table.
    """

    architectures: int
    costs: Mapping[BudgetKey, CostRange]

    @classmethod
    def of(cls, model: CostModel, space: Mapping[Component, Sequence[str]]) -> Outlook:
        """Count a space.

        Args:
            model: Costs of all layers.
            space: Candidate names of each component.

        Source:
            Eq. 7, by uniform probabilities, for the mean.
        """
        costs: dict[BudgetKey, CostRange] = {}
        for key, unit in UNITS.items():
            if unit.field == "nanoseconds" and model.latency is None:
                continue
            counted = SpaceCosts(model, space, key)
            least, mean, most = counted.least, counted.mean, counted.largest
            costs[key] = CostRange(least / unit.scale, mean / unit.scale, most / unit.scale)
        return cls(math.prod(map(len, layer_candidates(model.skeleton, space).values())), costs)

    def sentence(self) -> str:
        """Return the same in words."""
        ranges = [
            f"{each.least:.3g} to {each.largest:.3g} {UNITS[key].name} ({each.uniform:.3g} on average)"
            for key, each in self.costs.items()
        ]
        return f"{count_in_words(self.architectures)} of {', '.join(ranges)}"


def stage_steps(settings: Settings, data: DetectionData, screened: SearchSpace | None) -> dict[str, int]:
    """Return the steps of each stage's weights; architecture parameters take as many behind their warm-up.

    Args:
        settings: The settings.
        data: The images.
        screened: The space, where its components are screened first; ``None`` where the search takes a given one.
    """
    trained, half = num_trained(data, settings.data), largest_half(data, settings)

    def steps_of(images: int) -> int:
        return steps_an_epoch(images, settings.data.batch_size, distributed.world_size())

    found: dict[str, int] = {}
    if screened is not None:
        supernets = screening_supernets(settings, data)
        share = share_of(settings.screening, supernets, 0)
        for components in screening_groups(settings.screening, screened):
            found[screening_stage(components)] = supernets * share.epochs * steps_of(half)
    found["search"] = settings.search.epochs * steps_of(half)
    found["retrain"] = settings.retrain.epochs * steps_of(trained)
    return found


def tell_long_warmup(settings: Settings, data: DetectionData) -> None:
    """Say in a line that the warm-up of a retraining takes more than a half of its steps."""
    warmup, steps = settings.retrain.warmup_iterations, stage_steps(settings, data, None)["retrain"]
    if 2 * warmup > steps:
        logger.warning(
            "retrain.warmup_iterations: in %d of the %d steps the learning rate still rises; try %d",
            *(min(warmup, steps), steps, steps // 10),
        )


def pretrainings(settings: Settings, data: DetectionData, screened: SearchSpace | None) -> int:
    """Return how often a backbone is pretrained on boxes of the data before a supernet is trained.

    Args:
        settings: The settings.
        data: The images.
        screened: The space, where its components are screened first; ``None`` where the search takes a given one.
    """
    if not settings.pretrain.boxes:
        return 0
    groups = 0
    if screened is not None and settings.screening.pretrained is None:
        groups = len(screening_groups(settings.screening, screened))
    return groups * screening_supernets(settings, data) + (settings.search.pretrained is None)


def screening_supernets(settings: Settings, data: DetectionData) -> int:
    """Return how many supernets share the screening of a component."""
    steps = steps_an_epoch(largest_half(data, settings), settings.data.batch_size, distributed.world_size())
    return num_supernets(settings.screening, steps)


def largest_half(data: DetectionData, settings: Settings) -> int:
    """Return the images of the larger half of those that are trained on, by which the steps of an epoch count."""
    return math.ceil(num_trained(data, settings.data) / 2)


def count_in_words(architectures: int) -> str:
    """Return a number of architectures as people write it."""
    if architectures < 10**6:
        return f"{architectures:,} architectures"
    return f"{architectures:.1e} architectures"
