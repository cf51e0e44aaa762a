"""How good a front ways of trying architectures find with equally many evaluations: ours, NSGA-II, drawing at random.

python benchmarks/front_methods.py runs/mine           # a run whose search has ended; wants optuna
python benchmarks/front_methods.py runs/mine --json    # the figures, for a document

All try architectures in the same supernet on the same images. What each way has found that nothing else of it beats is
then evaluated on other images, and the hypervolume is of those losses: the area between the front's stairs, the largest
cost (on a logarithmic axis) and the largest loss of all fronts, over the area of the whole box.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import echo, surroundings

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.pareto import pareto_front, stairs
from hitdet_nni.data.sources import open_data
from hitdet_nni.nas.front import FrontSearch, known
from hitdet_nni.nas.operator_samples import Losses, Sampled
from hitdet_nni.nas.sample_evaluation import evaluation
from hitdet_nni.nas.sampled_decode import Evaluated
from hitdet_nni.nas.sampled_supernet import SampledSupernet
from hitdet_nni.runs.run_directory import find_run
from hitdet_nni.studies.retrainings import deviation

POPULATION = 24
"""Of NSGA-II: eight generations of 192 evaluations."""

Try = Callable[[FrontSearch, Losses, int, int], list[Evaluated]]
"""Tries so many architectures with a seed."""


def by_model(search: FrontSearch, losses: Losses, count: int, seed: int) -> list[Evaluated]:
    """Try what ``hitdet-nni front`` tries."""
    return search.explore(losses, count, seed)


def at_random(search: FrontSearch, losses: Losses, count: int, seed: int) -> list[Evaluated]:
    """Try architectures whose operators are drawn independently, none twice."""
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(str(generator.choice(names)) for names in search.candidates.values())] = None
    samples = [dict(zip(search.candidates, key, strict=True)) for key in drawn]
    return [Evaluated(sample, loss) for sample, loss in zip(samples, losses(samples), strict=True)]


def by_nsga2(search: FrontSearch, losses: Losses, count: int, seed: int) -> list[Evaluated]:
    """Try what NSGA-II proposes; an architecture that it proposes again costs no evaluation."""
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    operators = {label: CategoricalDistribution(list(names)) for label, names in search.candidates.items()}
    tried: dict[tuple[str, ...], Evaluated] = {}
    for _ in range(20 * count // POPULATION):
        if len(tried) == count:
            break
        trials = [study.ask(operators) for _ in range(POPULATION)]
        samples = [{label: str(trial.params[label]) for label in operators} for trial in trials]
        new = [key for key in dict.fromkeys(tuple(one.values()) for one in samples) if key not in tried]
        proposed = [dict(zip(operators, key, strict=True)) for key in new[: count - len(tried)]]
        for sample, loss in zip(proposed, losses(proposed), strict=True):
            tried[tuple(sample.values())] = Evaluated(sample, loss)
        for trial, sample in zip(trials, samples, strict=True):
            if (one := tried.get(tuple(sample.values()))) is not None:
                study.tell(trial, [one.loss, search.cost(sample)], state=TrialState.COMPLETE)
    return list(tried.values())


OURS = "front"
"""Our way."""

WAYS: Mapping[str, Try] = {OURS: by_model, "NSGA-II": by_nsga2, "random": at_random}
"""Ways of trying architectures, by name."""


@dataclass(frozen=True)
class Front:
    """What a way has found with a seed.

    Attributes:
        way: Its name.
        seed: The seed.
        evaluations: Architectures tried.
        points: Cost and held-out loss of those that no other one of them beat.
        hypervolume: Share of the box that the points beat.
    """

    way: str
    seed: int
    evaluations: int
    points: Sequence[tuple[float, float]]
    hypervolume: float


def hypervolume(points: Sequence[tuple[float, float]], least: tuple[float, float], most: tuple[float, float]) -> float:
    """Share of the box between two corners that is beaten by points of cost and loss, costs on a logarithmic axis."""
    inside = [(cost, -loss) for cost, loss in points if cost <= most[0] and loss <= most[1]]
    if not inside:
        return 0.0
    front = [inside[place] for place in pareto_front(inside)]
    corners = stairs(front, most[0])
    area = sum(
        (math.log(right[0]) - math.log(left[0])) * (most[1] + left[1]) for left, right in itertools.pairwise(corners)
    )
    return area / ((math.log(most[0]) - math.log(least[0])) * (most[1] - least[1]))


def compare(path: Path, count: int, seeds: int, images: int, cost: str) -> list[Front]:
    """Let every way try architectures of a run's supernet with several seeds."""
    run = find_run(path)
    settings = load_settings(run.config)
    data = replace(open_data(settings.data, settings.seed, settings.skeleton.input_size), halves=run.halves)
    space = load_search_space(run.sub_spaces)
    model = CostModel(settings.skeleton, len(data.classes))
    supernet = SampledSupernet.restore(run.supernet, space, settings, len(data.classes))
    search = FrontSearch(model, space, cost, supernet.candidates)
    remembered: dict[tuple[int, tuple[str, ...]], float] = {}

    def remembering(losses: Losses, skip: int) -> Losses:
        def keep(samples: Sequence[Sampled], values: Sequence[float]) -> None:
            remembered.update({(skip, tuple(one.values())): loss for one, loss in zip(samples, values, strict=True)})

        return known(losses, lambda one: remembered.get((skip, tuple(one.values()))), keep)

    found: list[tuple[str, int, int, list[tuple[float, float]]]] = []
    asked = (supernet, "front", settings, data, settings.seed, images, count)
    with evaluation(*asked) as of_choice, evaluation(*asked, skip=images) as of_figures:
        choosing, showing = remembering(of_choice, 0), remembering(of_figures, images)
        for seed in range(seeds):
            for way, tries in WAYS.items():
                tried = tries(search, choosing, count, seed)
                best = pareto_front([(search.cost(one.sample), -one.loss) for one in tried])
                samples = [{label: tried[place].sample[label] for label in search.candidates} for place in best]
                found.append(
                    (way, seed, len(tried), list(zip(map(search.cost, samples), showing(samples), strict=True)))
                )
    every = [point for *_, points in found for point in points]
    (cheapest, dearest), losses = search.ends, [loss for _, loss in every]
    least, most = (cheapest, min(losses)), (dearest, max(losses))
    return [Front(way, seed, tried, points, hypervolume(points, least, most)) for way, seed, tried, points in found]


@dataclass(frozen=True)
class WayFigures:
    """What a way reaches over its seeds.

    Attributes:
        way: Its name.
        hypervolume: Mean share of the box.
        deviation: Its standard deviation, or ``None`` with one seed.
        of_ours: Median of its hypervolumes over ours of the same seed.
        points: Mean number of points of a front.
        evaluations: Mean number of architectures tried.
    """

    way: str
    hypervolume: float
    deviation: float | None
    of_ours: float
    points: float
    evaluations: float

    @classmethod
    def of(cls, way: str, found: Sequence[Front]) -> WayFigures:
        """Sum up the fronts of a way."""
        ours = {one.seed: one.hypervolume for one in found if one.way == OURS}
        rows = [one for one in found if one.way == way]
        volumes = [one.hypervolume for one in rows]
        return cls(
            way,
            statistics.fmean(volumes),
            deviation(volumes),
            statistics.median(one.hypervolume / ours[one.seed] for one in rows),
            statistics.fmean(len(one.points) for one in rows),
            statistics.fmean(one.evaluations for one in rows),
        )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--samples", type=int, default=192, help="architectures that each way tries (default: 192)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each way (default: 5)")
    parser.add_argument("--images", type=int, default=56, help="images of each half of the half (default: 56)")
    parser.add_argument("--cost", choices=("gflops", "params_m"), default="gflops", help="the cost (default: gflops)")
    parser.add_argument("--remark", default="", help="a sentence on the supernet, for the document")
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # where samples tell how far they are
        found = compare(options.run, options.samples, options.seeds, options.images, options.cost)
    figures = [WayFigures.of(way, found) for way in WAYS]
    if options.json:
        asked = {"seeds": options.seeds, "cost": options.cost, "remark": options.remark}
        rows = {"figures": [asdict(one) for one in figures], "fronts": [asdict(one) for one in found]}
        echo(json.dumps(surroundings(torch.device("cpu")) | asked | rows, indent=1))
        return
    echo(f"{'way':10} {'hypervolume':>12} {'sd':>6} {'of ours':>8} {'points':>7} {'evaluations':>12}")
    for one in figures:
        echo(
            f"{one.way:10} {one.hypervolume:12.4f} {one.deviation or math.nan:6.4f} {one.of_ours:8.3f} "
            f"{one.points:7.1f} {one.evaluations:12.0f}"
        )


if __name__ == "__main__":
    main()
