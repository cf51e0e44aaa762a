"""The whole procedure with several seeds against what else the same cost and the same price would have given."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import permutation_test

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.sources import DetectionData, open_data
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.errors import InputError
from hitdet_nni.io import WEIGHTS_FILE, read_json, write_json
from hitdet_nni.pipeline import screen, search
from hitdet_nni.runs.front import chosen_point, read_front
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.search.provenance import describe_architecture
from hitdet_nni.search.run_front import FrontRequest, find_front
from hitdet_nni.studies.jobs import Job, opened, seeded
from hitdet_nni.studies.random_architectures import random_samples
from hitdet_nni.studies.retrainings import Retraining, deviation
from hitdet_nni.training.precisions import Detections

logger = logging.getLogger(__name__)

FRONT, PARAMETERS, HANDMADE, RANDOM = "front", "parameters", "handmade", "random"
"""Ways to come to an architecture: the best of the supernet's front within the cost of what the architecture parameters
decide; these; the one operator that fills that cost best; chance."""

BEST_OF_RANDOM = "best of random"
"""The best of as many random ones as could be trained in the time of a search, by images that no figure is of."""

SLACKS = (0.1, 0.2, 0.4, 1.0)
"""All cost at most as much as what the parameters decide, and random ones at most the first of these shares less; where
that has too few architectures, the next."""

_SECONDS = "study_seconds.json"


@dataclass(frozen=True)
class SearchOnce(Job):
    """Screening, search and front with one seed.

    Attributes:
        space: The whole space.
        samples: Architectures that the front tries.
    """

    space: SearchSpace
    samples: int


def searches(settings: Settings, space: SearchSpace, seeds: int, samples: int, folder: Path) -> list[SearchOnce]:
    """Return the same search with several seeds on the same images.

    Args:
        settings: All settings; the first seed is theirs, the others follow it.
        space: The whole space.
        seeds: How many.
        samples: Architectures that each front tries.
        folder: Where the run directories go.
    """
    return [SearchOnce(one, folder / f"search-seed-{one.seed}", space, samples) for one in seeded(settings, seeds)]


def search_once(one: SearchOnce) -> RunDirectory:
    """Screen, search and find the front with one seed, or go on where that stopped; return the run directory."""
    with opened(one) as run:
        settings = one.settings
        data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        with _timed(run):
            space = screen(run, one.space, settings, data)
            found = search(run, space, settings, data)
            if not run.front_table.exists():
                budget = cost_of(found, settings)
                asked = FrontRequest("gflops", [budget], None, one.samples, settings.search.sample_images)
                find_front(run, settings, data, asked)
    return run


@contextmanager
def _timed(run: RunDirectory) -> Iterator[None]:
    """Add wall time to a file of the run, that of a call that is interrupted, too: its work is not done again."""
    started = time.monotonic()
    try:
        yield
    finally:
        write_json(run.path / _SECONDS, search_seconds(run) + time.monotonic() - started)


def search_seconds(run: RunDirectory) -> float:
    """Return the wall time that screening, search and front have taken so far."""
    file = run.path / _SECONDS
    return float(read_json(file)) if file.exists() else 0.0


def cost_of(architecture: Architecture, settings: Settings) -> float:
    """Return the GFLOPs of an architecture at the settings' input size."""
    model = CostModel(settings.skeleton, architecture.num_classes)
    return model.architecture(architecture.sample)["total"].flops / 1e9


def competitors(one: SearchOnce, run: RunDirectory, data: DetectionData) -> dict[str, Architecture]:
    """Return the architectures of a seed that do not depend on what a training costs, by how they were come to."""
    found = load_architecture(run.architecture)
    limit = cost_of(found, one.settings)
    point = chosen_point(read_front(run.front_table), limit)
    handmade = handmade_sample(CostModel(one.settings.skeleton, len(data.classes)), one.space, limit)

    def described(name: str, sample: Mapping[str, str]) -> Architecture:
        return describe_architecture(name, sample, one.space, one.settings, data.classes, source=name)

    return {
        FRONT: described(FRONT, point.sample),
        PARAMETERS: described(PARAMETERS, found.sample),
        HANDMADE: described(HANDMADE, handmade),
    }


def handmade_sample(model: CostModel, space: SearchSpace, limit: float) -> dict[str, str]:
    """Return the architecture with the same operator everywhere that costs most within a limit; else the cheapest.

    Which operator stands where is what is searched; by hand one takes the same everywhere.

    Args:
        model: Costs of all layers.
        space: The whole space; what all components have is taken from.
        limit: GFLOPs.
    """
    names = [name for name in space["backbone"] if name in space["neck"] and name in space["head"]]
    samples = [{layer.label: name for layer in model.layers} for name in names]
    costs = [model.architecture(sample)["total"].flops / 1e9 for sample in samples]
    within = [place for place, cost in enumerate(costs) if cost <= limit]
    if not within:
        logger.warning("no architecture of one operator is within %g GFLOPs; the cheapest has %g", limit, min(costs))
    place = max(within, key=lambda place: costs[place]) if within else costs.index(min(costs))
    return samples[place]


def random_competitors(one: SearchOnce, run: RunDirectory, data: DetectionData, count: int) -> dict[str, Architecture]:
    """Return random architectures of the whole space that cost as much as what the parameters decide, by name."""
    settings = one.settings
    model = CostModel(settings.skeleton, len(data.classes))
    most = 1e9 * cost_of(load_architecture(run.architecture), settings)
    samples = _within(model, one, count, most)
    return {
        f"{RANDOM}-{number:02d}": describe_architecture(
            f"{RANDOM}-{number:02d}", sample, one.space, settings, data.classes, source=RANDOM
        )
        for number, sample in enumerate(samples, 1)
    }


def _within(model: CostModel, one: SearchOnce, count: int, most: float) -> list[dict[str, str]]:
    for slack in SLACKS:
        try:
            return random_samples(model, one.space, count, least=(1 - slack) * most, most=most, seed=one.settings.seed)
        except InputError:
            if slack == SLACKS[-1]:
                raise
            logger.warning("seed %d: too few architectures cost at most %g less", one.settings.seed, slack)
    raise AssertionError("the last slack has ended it")


def affordable(search_seconds: Sequence[float], training_seconds: Sequence[float]) -> int:
    """Return how many random architectures can be trained for the price of a search and one training, 2 or more."""
    price, training = statistics.fmean(search_seconds), statistics.fmean(training_seconds)
    return max(2, round((price + training) / training))


@dataclass(frozen=True)
class Price:
    """What a search costs, and how many random architectures are trained for as much.

    Attributes:
        search_seconds: Mean time of screening, search and front.
        training_seconds: Mean time of a retraining.
        randoms: Random architectures of a seed.
    """

    search_seconds: float
    training_seconds: float
    randoms: int


def settled_price(folder: Path, searching: Sequence[float], training: Sequence[float]) -> Price:
    """Return the price that the study has settled on when it first knew the times; a study that goes on keeps it.

    Args:
        folder: The study's directory.
        searching: Time of each search, in seconds.
        training: Time of each retraining that does not depend on the price.
    """
    file = folder / "price.json"
    if not file.exists():
        found = Price(statistics.fmean(searching), statistics.fmean(training), affordable(searching, training))
        write_json(file, asdict(found))
    return Price(**read_json(file))


def retraining(one: SearchOnce, name: str, architecture: Architecture, folder: Path) -> Retraining:
    """Return the retraining of a competitor with the seed of its search."""
    return Retraining(one.settings, folder / f"{name}-seed-{one.settings.seed}", architecture)


def halves_of(validation: CocoAnnotations) -> tuple[list[int], list[int]]:
    """Return the validation images that choices are made by, and those that figures are of: every other one."""
    return list(validation.image_ids[::2]), list(validation.image_ids[1::2])


def accuracies(one: Retraining, validation: CocoAnnotations) -> tuple[float, float]:
    """Return the mAP of a retrained architecture on the images of choices, and on those of figures."""
    run = RunDirectory(one.folder)
    detector = load_detector(one.architecture, run.retrain / WEIGHTS_FILE)

    @torch.inference_mode()
    def find(images: Pixels) -> Found:
        boxes, scores, labels = detector(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy(), labels.numpy()

    found = Detections.of(find, one.architecture.skeleton.input_size, validation)
    chosen, shown = (found.precisions(images)["mAP"] for images in halves_of(validation))
    return chosen, shown


@dataclass(frozen=True)
class SeedOutcome:
    """What a seed's architectures reach on the images of figures.

    Attributes:
        seed: The seed.
        gflops: What the architecture costs that the parameters decide.
        by_way: mAP by the way that the architecture was come to.
        random: mAP of each random architecture.
    """

    seed: int
    gflops: float
    by_way: Mapping[str, float]
    random: Sequence[float]

    @classmethod
    def of(cls, seed: int, gflops: float, found: Mapping[str, tuple[float, float]]) -> SeedOutcome:
        """Sum up a seed.

        Args:
            seed: The seed.
            gflops: What the architecture costs that the parameters decide.
            found: mAP on the images of choices and of figures by competitor.
        """
        drawn = [pair for name, pair in found.items() if name.startswith(f"{RANDOM}-")]
        ways = {name: pair[1] for name, pair in found.items() if not name.startswith(f"{RANDOM}-")}
        shown = [pair[1] for pair in drawn]
        ways[BEST_OF_RANDOM] = max(drawn, key=lambda pair: pair[0])[1]
        ways[RANDOM] = statistics.fmean(shown)
        return cls(seed, gflops, ways, shown)


@dataclass(frozen=True)
class Against:
    """The front against another way, seed by seed.

    Attributes:
        way: The other way.
        mean: Its mean mAP over the seeds.
        deviation: Its standard deviation.
        ahead: Mean difference of the front.
        wins: Seeds in which the front is ahead.
        p_value: Probability that exchanging both in each seed at random puts the front ahead by as much or more.
    """

    way: str
    mean: float
    deviation: float | None
    ahead: float
    wins: int
    p_value: float


@dataclass(frozen=True)
class SearchSummary:
    """What the study says.

    Attributes:
        seeds: Seeds of the search.
        mean: Mean mAP of the front's architectures over the seeds.
        deviation: Its standard deviation.
        random_deviation: Standard deviation of random architectures, mean over the seeds.
        rank: Mean place of the front's architecture among it and the seed's random ones, 1 the best.
        against: The other ways.
        price: What a search and a retraining took.
    """

    seeds: int
    mean: float
    deviation: float | None
    random_deviation: float | None
    rank: float
    against: tuple[Against, ...]
    price: Price

    @classmethod
    def of(cls, outcomes: Sequence[SeedOutcome], price: Price) -> SearchSummary:
        """Compare the ways over all seeds."""
        ours = [one.by_way[FRONT] for one in outcomes]
        against = []
        for way in (PARAMETERS, RANDOM, BEST_OF_RANDOM, HANDMADE):
            theirs = [one.by_way[way] for one in outcomes]
            differences = [a - b for a, b in zip(ours, theirs, strict=True)]
            against.append(
                Against(
                    way,
                    statistics.fmean(theirs),
                    deviation(theirs),
                    statistics.fmean(differences),
                    sum(difference > 0 for difference in differences),
                    _paired_p(differences),
                )
            )
        spreads = [spread for one in outcomes if (spread := deviation(one.random)) is not None]
        ranks = [1 + sum(value >= one.by_way[FRONT] for value in one.random) for one in outcomes]
        return cls(
            len(outcomes),
            statistics.fmean(ours),
            deviation(ours),
            statistics.fmean(spreads) if spreads else None,
            statistics.fmean(ranks),
            tuple(against),
            price,
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""

        def spread(mean: float, deviation: float | None) -> str:
            return f"{mean:.3f}" + ("" if deviation is None else f" (sd {deviation:.3f})")

        lines = [f"front: mAP {spread(self.mean, self.deviation)} over {self.seeds} seeds"]
        for one in self.against:
            lines.append(
                f"{one.way}: mAP {spread(one.mean, one.deviation)}; the front is "
                f"{'ahead' if one.ahead >= 0 else 'behind'} by {abs(one.ahead):.3f}, in {one.wins} of {self.seeds} "
                f"seeds, p {one.p_value:.2g}"
            )
        randoms, training = self.price.randoms, self.price.training_seconds
        lines.append(
            f"the front's place among it and {randoms} random ones is {self.rank:.1f} on average, "
            f"{(randoms + 2) / 2:.1f} by chance"
        )
        lines.append(
            f"a search took {self.price.search_seconds:.0f} s and a retraining {training:.0f} s: the best of "
            f"{randoms} random ones costs {randoms * training:.0f} s against "
            f"{self.price.search_seconds + training:.0f} s"
        )
        return lines


def _paired_p(differences: Sequence[float]) -> float:
    """Return the probability that differences of random signs have as large a mean."""
    if not math.fsum(map(abs, differences)):
        return 1.0
    if len(differences) == 1:  # SciPy wants two
        return 0.5 if differences[0] > 0 else 1.0
    test = permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=99_999,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
