"""The whole procedure with several seeds against what else the same budget and the same price would have given."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import DetectionData, open_data
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.checks import budget_cost_model, budget_of
from hitdet_nni.nas.provenance import describe_architecture
from hitdet_nni.nas.run_front import FrontRequest, find_front
from hitdet_nni.pipeline.screening import screen
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.front import chosen_point, points_within, read_front
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.jobs import Job, opened, seeded
from hitdet_nni.studies.random_architectures import detectors_within
from hitdet_nni.studies.retrainings import Retraining
from hitdet_nni.studies.successive_halving import Chosen, best_by_halving, epochs_before, epochs_left
from hitdet_nni.training.runner_config import STAGE

logger = logging.getLogger(__name__)

FRONT, PARAMETERS, HANDMADE, RANDOM = "front", "parameters", "handmade", "random"
"""Ways to come to an architecture within the budget: the best of the supernet's front; what the architecture parameters
decide; the one operator that fills the budget best; chance."""

BEST_OF_FRONT = "best of front"
"""The best of some of the front within the budget, by successive halving."""

BEST_OF_RANDOM = "best of random"
"""The best of as many random ones as could be trained in the time that ours takes, by images that no figure is
of."""

HALVED_RANDOM = "halved random"
"""The best of as many random ones as ours pays for, by successive halving like that which chooses ours: what
a search has to be ahead of."""

DRAWS_OF_ITS_OWN = 100_000
"""What the seed of a search's own random architectures is larger by than its own."""

SEARCH_STAGES = ("pretraining", "screening", "search", "front")
"""What is paid for an architecture, before its training."""


@dataclass(frozen=True)
class SearchOnce(Job):
    """Screening, search and front with one seed.

    Attributes:
        space: The whole space.
        samples: Architectures that the front tries, besides a third as many that fill the budget.
    """

    space: SearchSpace
    samples: int


def searches(settings: Settings, space: SearchSpace, seeds: int, samples: int, folder: Path) -> list[SearchOnce]:
    """Return the same search with several seeds on the same images.

    Args:
        settings: All settings; the first seed is theirs, the others follow it.
        space: The whole space.
        seeds: How many.
        samples: Architectures that each front tries, besides a third as many that fill the budget.
        folder: Where the run directories go.
    """
    return [SearchOnce(one, folder / f"search-seed-{one.seed}", space, samples) for one in seeded(settings, seeds)]


def search_once(one: SearchOnce) -> RunDirectory:
    """Screen, search and find the front with one seed, or go on where that stopped; return the run directory."""
    with opened(one) as run:
        settings = one.settings
        data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        with run.timed("screening"):
            space = screen(run, one.space, settings, data)
        with run.timed("search"):
            search(run, space, settings, data)
        if not run.front_table.exists():
            budget, table = budget_of(settings), cost_model(settings, data).latency
            asked = FrontRequest(budget.key, [budget.limit], table, one.samples, settings.search.sample_images)
            with run.timed("front"):
                find_front(run, settings, data, asked)
    return run


def search_seconds(run: RunDirectory) -> float:
    """Return the wall time that screening, search and front have taken so far, pretraining and interrupted calls too.

    Raises:
        InputError: If none was noted, as by an earlier version, so that the price is not known.
    """
    seconds = sum(run.seconds(stage) for stage in SEARCH_STAGES)
    if run.architecture.exists() and not seconds:
        raise InputError("has no times of its stages", source=run.metadata, allowed="a study that was begun anew")
    return seconds


def cost_model(settings: Settings, data: DetectionData) -> CostModel:
    """Return the costs of all layers, with measured times where the budget is in milliseconds.

    Raises:
        InputError: If the table cannot be read, or is of another detector or machine.
    """
    return budget_cost_model(settings.skeleton, len(data.classes), settings.search.budget)


def competitors(one: SearchOnce, run: RunDirectory, data: DetectionData) -> dict[str, Architecture]:
    """Return what a seed has found, and the handmade detector, by how they were come to.

    Raises:
        InputError: If the front has none within the budget.
    """
    settings = one.settings
    point = chosen_point(read_front(run.front_table), budget_of(settings).limit)
    samples = {
        FRONT: point.sample,
        PARAMETERS: load_architecture(run.architecture).sample,
        HANDMADE: handmade_sample(cost_model(settings, data), one.space, budget_of(settings)),
    }
    return {name: _described(name, name, sample, one, data) for name, sample in samples.items()}


def _described(name: str, way: str, sample: Mapping[str, str], one: SearchOnce, data: DetectionData) -> Architecture:
    table = cost_model(one.settings, data).latency
    return describe_architecture(name, sample, one.space, one.settings, data.classes, source=way, latency=table)


def handmade_sample(model: CostModel, space: SearchSpace, settings: BudgetSettings) -> dict[str, str]:
    """Return the architecture with the same operator everywhere that costs most within a budget; else the cheapest.

    Which operator stands where is what is searched; by hand one takes the same everywhere.

    Args:
        model: Costs of all layers.
        space: The whole space; what all components have is taken from.
        settings: The budget.
    """
    budget = Budget(model, space, settings)
    names = [name for name in space["backbone"] if name in space["neck"] and name in space["head"]]
    samples = [{layer.label: name for layer in model.layers} for name in names]

    within = [sample for sample in samples if budget.keeps(sample)]
    if not within:
        logger.warning("no architecture of one operator is within the budget; the cheapest stands for it")
    return max(within, key=budget.costs.of) if within else min(samples, key=budget.costs.of)


def random_competitors(
    one: SearchOnce, data: DetectionData, count: int, seed: int | None = None, key: str | None = None
) -> dict[str, Architecture]:
    """Return random architectures of the whole space that fill the budget, by name; fewer of them are the first ones.

    Args:
        one: A search.
        data: The images.
        count: How many, or all where there are fewer.
        seed: Of the draws; by default the search's.
        key: The option that asks for so many, where fewer are to be refused.

    Raises:
        InputError: If the whole space has fewer within the budget, and ``key`` asks for them.
    """
    drawn_by = one.settings.seed if seed is None else seed
    drawn = detectors_within(one.settings, one.space, budget_of(one.settings), data.classes, count, drawn_by, key)
    return {each.name: each for each in drawn}


@dataclass(frozen=True)
class Price:
    """What a search costs, and how many random architectures are trained for as much.

    Attributes:
        search_seconds: Mean time of screening, search and front.
        choice_seconds: Mean time of the trainings by which the best of the front is chosen.
        training_seconds: Mean time of a retraining.
        choice_epochs: Mean of the epochs that a choice's trainings make, 0 where nothing is chosen.
        left: Mean share of a training that the chosen architecture's has still to make.
    """

    search_seconds: float
    choice_seconds: float
    training_seconds: float
    choice_epochs: float = 0.0
    left: float = 1.0

    @property
    def whole(self) -> float:
        """Time up to our architecture's trained weights, in seconds."""
        return self.search_seconds + self.choice_seconds + self.left * self.training_seconds

    @property
    def randoms(self) -> int:
        """How many random architectures can be trained in that time, 2 or more."""
        return max(2, round(self.whole / self.training_seconds))

    def halved(self, epochs: int) -> int:
        """Return of how many random architectures the best can be chosen by halving and trained in that time.

        An epoch of a choice takes the time that one took in ours, or else in a whole training. Two are the least.

        Args:
            epochs: Epochs of a whole training.
        """
        whole_epoch = self.training_seconds / epochs
        epoch = self.choice_seconds / self.choice_epochs if self.choice_epochs else whole_epoch
        count = 2
        while epochs_before(count + 1, epochs) * epoch + epochs_left(count + 1, epochs) * whole_epoch <= self.whole:
            count += 1
        return count


@dataclass(frozen=True)
class Choice(Job):
    """The choice among the best architectures of a seed's front.

    Attributes:
        architectures: Some of the least loss within the budget, the least first.
    """

    architectures: tuple[Architecture, ...]


def choice(one: SearchOnce, run: RunDirectory, data: DetectionData, count: int, folder: Path) -> Choice:
    """Return the choice among so many architectures of a seed's front, or as many as there are.

    Args:
        one: The search.
        run: Its run directory.
        data: The images.
        count: Architectures.
        folder: Where the run directories go.
    """
    rows = points_within(read_front(run.front_table), budget_of(one.settings).limit, count)
    architectures = tuple(_described(row.name, FRONT, row.sample, one, data) for row in rows)
    return Choice(one.settings, folder / f"choice-seed-{one.settings.seed}", architectures)


def random_choice(one: SearchOnce, data: DetectionData, count: int, folder: Path) -> Choice:
    """Return the choice among so many random architectures, drawn for this seed alone.

    Args:
        one: The search.
        data: The images.
        count: Architectures, or all where there are fewer.
        folder: Where the run directories go.
    """
    drawn = random_competitors(one, data, count, (one.settings.seed + DRAWS_OF_ITS_OWN) % 2**32)
    return Choice(one.settings, folder / f"random-choice-seed-{one.settings.seed}", tuple(drawn.values()))


def choose(one: Choice) -> Chosen:
    """Return the best of some architectures by successive halving, or what that has ended with; one has no rivals."""
    if len(one.architectures) == 1:
        return Chosen(one.architectures[0], None)
    with opened(one) as run:
        return best_by_halving(one.architectures, one.settings, run.path)


def settled_price(
    folder: Path, searches: Sequence[RunDirectory], choices: Sequence[Choice], retrainings: Sequence[Retraining]
) -> Price:
    """Return the price that the study has settled on when it first knew the times; a study that goes on keeps it.

    Args:
        folder: The study's directory.
        searches: The run directory of each search.
        choices: The choices among the front's best, which have ended; none where nothing is chosen.
        retrainings: The retrainings that do not depend on the price; those that a choice began do not count.
    """
    file = folder / "price.json"
    if not file.exists():
        began = [RunDirectory(one.folder).seconds(STAGE) for one in retrainings if one.begun is None]
        among = [(len(one.architectures), one.settings.retrain.epochs) for one in choices]
        price = Price(
            search_seconds=statistics.fmean(map(search_seconds, searches)),
            choice_seconds=statistics.fmean(map(choice_seconds, choices)) if choices else 0.0,
            choice_epochs=statistics.fmean(epochs_before(*each) for each in among) if among else 0.0,
            left=statistics.fmean(epochs_left(*each) / each[1] for each in among) if among else 1.0,
            training_seconds=statistics.fmean(began),
        )
        write_json(file, asdict(price))
    return Price(**read_json(file))


def choice_seconds(one: Choice) -> float:
    """Return the wall time of the trainings of a choice."""
    if len(one.architectures) == 1:
        return 0.0
    return sum(RunDirectory(one.folder / each.name).seconds(STAGE) for each in one.architectures)


def retraining(
    settings: Settings, name: str, architecture: Architecture, folder: Path, begun: RunDirectory | None = None
) -> Retraining:
    """Return the retraining of a competitor with the seed of some settings, which may have begun in a choice."""
    return Retraining(settings, folder / f"{name.replace(' ', '-')}-seed-{settings.seed}", architecture, begun)
