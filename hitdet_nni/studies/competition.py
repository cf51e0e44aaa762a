"""The study of the whole procedure: its trainings in their order, and what the architecture of every way reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.jobs import Job, Work, run_jobs, seeded
from hitdet_nni.studies.retrainings import Retraining, retrain_once
from hitdet_nni.studies.search_study import (
    BEST_OF_FRONT,
    HALVED_RANDOM,
    Choice,
    Price,
    SearchOnce,
    choice,
    choose,
    competitors,
    random_choice,
    random_competitors,
    retraining,
    search_once,
    searches,
    settled_price,
)
from hitdet_nni.studies.search_summary import RandomPool, SeedOutcome
from hitdet_nni.studies.validation_halves import accuracies
from hitdet_nni.training.runner_config import STAGE


@dataclass(frozen=True)
class Outcomes:
    """What a study of the whole procedure ends with.

    Attributes:
        seeds: What the architectures of each seed reach, by the way that they were come to.
        pool: What random architectures reach.
        price: What a search and a retraining took.
        halved: Random architectures that each seed's best was chosen among by halving.
        samples: The architectures, by the name of the run that trained them.
    """

    seeds: tuple[SeedOutcome, ...]
    pool: RandomPool
    price: Price
    halved: int
    samples: Mapping[str, Mapping[str, str]]


class Competition:
    """The retrainings of all seeds' architectures, by how these were come to.

    An architecture that several ways come to is trained once.

    Args:
        searches: The search of each seed.
        folder: Where the run directories of the retrainings go.
    """

    def __init__(self, searches: Sequence[SearchOnce], folder: Path) -> None:
        self._searches, self._folder = searches, folder
        self._jobs: dict[tuple[int, str], Retraining] = {}

    def add(self, place: int, way: str, architecture: Architecture, begun: RunDirectory | None = None) -> None:
        """Enter an architecture.

        Args:
            place: Number of the search, from 0.
            way: How it was come to.
            architecture: The architecture.
            begun: The run directory of its training, where that has begun in a choice.
        """
        new = retraining(self._searches[place].settings, way, architecture, self._folder, begun)
        alike = (
            one
            for one in self._jobs.values()
            if (one.settings, one.architecture.sample) == (new.settings, new.architecture.sample)
        )
        there = next(alike, new)
        job = replace(there, begun=begun or there.begun)
        self._jobs.update({key: job for key, one in self._jobs.items() if one is there})
        self._jobs[place, way] = job

    def jobs_of(self, way: str) -> list[Retraining]:
        """Return the retrainings of what a way has come to, one a seed."""
        return [self._jobs[place, way] for place in range(len(self._searches))]

    @property
    def jobs(self) -> list[Retraining]:
        """All retrainings, each once, in the order in which they were entered."""
        return list({one.folder: one for one in self._jobs.values()}.values())

    def outcomes(self, validation: CocoAnnotations) -> tuple[SeedOutcome, ...]:
        """Return what the retrained architectures of each seed reach on the images of figures."""
        shown = {one.folder: accuracies(one, validation)[1] for one in self.jobs}
        return tuple(
            SeedOutcome(
                one.settings.seed, {way: shown[job.folder] for (at, way), job in self._jobs.items() if at == place}
            )
            for place, one in enumerate(self._searches)
        )


@dataclass(frozen=True)
class SearchStudy:
    """The whole procedure with several seeds, and what else the same budget and the same price would have given.

    Attributes:
        settings: All settings, a budget among them; the first seed is theirs.
        space: The whole space.
        data: The images.
        folder: The study's directory.
        seeds: Seeds of the search.
        samples: Architectures that each front tries, besides a third as many that fill the budget.
        top: Architectures of each front among which the best is chosen; 1 chooses none.
        randoms: Random architectures, or as many as a search pays for where that is more.
        processes: Searches and trainings side by side.
        on_end: Told of each as it ends: how many have, how many there are, and which.
    """

    settings: Settings
    space: SearchSpace
    data: DetectionData
    folder: Path
    seeds: int
    samples: int
    top: int
    randoms: int
    processes: int = 1
    on_end: Callable[[int, int, Job], None] = lambda done, total, one: None

    def run(self) -> Outcomes:
        """Search, retrain and compare; what has ended is not done again.

        Raises:
            InputError: If the study was begun with other numbers of architectures, or the space has too few.
        """
        self._keep_numbers()
        runs_folder, data = self.folder / "runs", self.data
        every = searches(self.settings, self.space, self.seeds, self.samples, runs_folder)
        random_competitors(every[0], data, self.randoms, key="--randoms")  # refused now, and not behind the searches
        runs = run_jobs(Work("search", search_once), every, self.processes, self._told)
        competition = Competition(every, runs_folder)
        for place, (one, run) in enumerate(zip(every, runs, strict=True)):
            for way, architecture in competitors(one, run, data).items():
                competition.add(place, way, architecture)
        choices: list[Choice] = []
        if self.top > 1:
            choices = [choice(one, run, data, self.top, runs_folder) for one, run in zip(every, runs, strict=True)]
            self._choose(competition, BEST_OF_FRONT, choices)
        self._train(competition.jobs)
        price = settled_price(self.folder, runs, choices, competition.jobs)
        drawn = self._randoms(every[0], price, runs_folder)
        self._train(drawn)
        paid = price.halved(self.settings.retrain.epochs)
        halvings = [random_choice(one, data, paid, runs_folder) for one in every]
        self._choose(competition, HALVED_RANDOM, halvings)
        self._train(competition.jobs_of(HALVED_RANDOM))
        return Outcomes(
            competition.outcomes(data.val),
            RandomPool.of([accuracies(one, data.val) for one in drawn]),
            price,
            len(halvings[0].architectures),
            {one.folder.name: dict(one.architecture.sample) for one in (*competition.jobs, *drawn)},
        )

    def _keep_numbers(self) -> None:
        """Write what a study that goes on has to have in common with its beginning.

        Raises:
            InputError: If it was begun otherwise.
        """
        file, numbers = self.folder / "numbers.json", {"samples": self.samples, "top": self.top}
        before = read_json(file) if file.exists() else numbers
        for name, number in numbers.items():
            if number != before[name]:
                problem = f"is {before[name]} in the study there, and {number} now"
                raise InputError(problem, source=self.folder, key=f"--{name}", allowed="the same, or --force")
        write_json(file, numbers)

    def _choose(self, competition: Competition, way: str, choices: Sequence[Choice]) -> None:
        for place, best in enumerate(run_jobs(Work("choice", choose), choices, self.processes, self._told)):
            competition.add(place, way, best.architecture, best.begun)

    def _randoms(self, one: SearchOnce, price: Price, folder: Path) -> list[Retraining]:
        """Return the retrainings of random architectures, each with a seed of its own."""
        drawn = random_competitors(one, self.data, max(self.randoms, price.randoms))
        seeds = seeded(self.settings, len(drawn))
        return [
            retraining(own, name, architecture, folder)
            for own, (name, architecture) in zip(seeds, drawn.items(), strict=True)
        ]

    def _train(self, jobs: Sequence[Retraining]) -> None:
        run_jobs(Work(STAGE, retrain_once), jobs, self.processes, self._told)

    def _told(self, done: int, total: int, one: Job, _: object) -> None:
        self.on_end(done, total, one)
