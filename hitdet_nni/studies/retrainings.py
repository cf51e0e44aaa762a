"""Many retrainings under one protocol: each in its own run directory, finished ones never repeated."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.engine.progress import PROGRESS_FILE, Progress, named, read_progress, tell, written
from hitdet_nni.pipeline import retrain_architecture
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.search.provenance import keep_architecture
from hitdet_nni.training.runner_config import STAGE

POLL_INTERVAL = 1.0
"""Seconds between two looks at how far the retrainings of other processes are."""


class Repeated:
    """What was measured several times.

    Attributes:
        accuracies: mAP of each time.
    """

    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean mAP."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of mAP (n - 1), or ``None`` of a single measurement."""
        return deviation(self.accuracies)


@dataclass(frozen=True)
class Trained(Repeated):
    """An architecture and what it reached.

    Attributes:
        name: Its name in the study.
        sample: Operator name of each searched layer by its label.
        params_m: Parameters, in millions.
        gflops: GFLOPs (multiply-adds) at the skeleton's input size.
        accuracies: mAP after retraining, one a seed.
    """

    name: str
    sample: Mapping[str, str]
    params_m: float
    gflops: float
    accuracies: tuple[float, ...]


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1), or ``None`` of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Retraining:
    """One retraining of a study.

    Attributes:
        architecture: What is trained.
        settings: All settings; their seed is the retraining's.
        folder: Its run directory.
    """

    architecture: Architecture
    settings: Settings
    folder: Path


OnResult = Callable[[int, int, Retraining, dict[str, Any]], None]
"""Told of retrainings as they end: how many have, how many there are, which, and the content of ``metrics.json``."""


@dataclass(frozen=True)
class Protocol:
    """How all architectures of a study are trained.

    Attributes:
        settings: All settings; the first seed is theirs, the others follow it.
        seeds: Retrainings of each architecture.
        folder: Where the run directories go.
        processes: Retrainings side by side, each in a process of its own; 1 trains in this process.
        on_result: Told of retrainings as they end.
    """

    settings: Settings
    seeds: int
    folder: Path
    processes: int = 1
    on_result: OnResult = lambda done, total, one, result: None

    def seed_range(self) -> range:
        """Return the seeds that every architecture is trained with."""
        return range(self.settings.seed, self.settings.seed + self.seeds)

    def retrain(self, architectures: Mapping[str, Architecture]) -> list[Trained]:
        """Train every architecture with every seed; what is trained already is not trained again.

        Args:
            architectures: What to train, by name.

        Raises:
            InputError: If a folder holds something else.
        """
        results = self._run(
            [
                Retraining(one, self.settings.model_copy(update={"seed": seed}), self.folder / f"{name}-seed-{seed}")
                for name, one in architectures.items()
                for seed in self.seed_range()
            ]
        )
        trained = []
        for number, (name, one) in enumerate(architectures.items()):
            own = results[number * self.seeds : (number + 1) * self.seeds]
            accuracies = tuple(result["mAP"] for result in own)
            trained.append(Trained(name, one.sample, own[0]["params_m"], own[0]["gflops"], accuracies))
        return trained

    def _run(self, retrainings: Sequence[Retraining]) -> list[dict[str, Any]]:
        """Run them, and return the contents of ``metrics.json`` in the order of the retrainings."""
        results: dict[int, dict[str, Any]] = {}
        with _runner(self.processes) as run:
            for number, result in run(retrainings):
                results[number] = result
                self.on_result(len(results), len(retrainings), retrainings[number], result)
        return [results[number] for number in range(len(retrainings))]


Runner = Callable[[Sequence[Retraining]], Iterator[tuple[int, dict[str, Any]]]]


@contextmanager
def _runner(processes: int) -> Iterator[Runner]:
    """Yield a function that runs retrainings and gives number and result of each as it ends."""
    if processes == 1:
        yield lambda retrainings: ((number, _retrain(one)) for number, one in enumerate(retrainings))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def run(retrainings: Sequence[Retraining]) -> Iterator[tuple[int, dict[str, Any]]]:
            futures = {pool.submit(_retrain, one): number for number, one in enumerate(retrainings)}
            pending = set(futures)
            try:
                while pending:
                    ended, pending = wait(pending, POLL_INTERVAL, FIRST_COMPLETED)
                    for number in (futures[future] for future in pending):
                        progress = read_progress(retrainings[number].folder / PROGRESS_FILE)
                        if progress is not None:
                            tell(progress)
                    for future in ended:
                        number, result = futures[future], future.result()
                        who, results = retrainings[number].folder.name, {"mAP": result["mAP"]}
                        tell(Progress(STAGE, "ended", results=results, who=who))
                        yield number, result
            finally:
                for future in futures:  # an error ends the study after those that have begun
                    future.cancel()

        yield run


def _retrain(one: Retraining) -> dict[str, Any]:
    prepare_process(one.settings.threads)
    run = RunDirectory(one.folder)
    with run.held() if distributed.is_main() else nullcontext(), named(one.folder.name):
        run.open(one.settings, resume=True)
        if distributed.is_main():
            keep_architecture(run, one.architecture)
        images = open_data(one.settings.data, one.settings.seed, one.architecture.skeleton.input_size)
        with run.timed("retrain"), _heard(run):
            return retrain_architecture(run, one.architecture, one.settings, images, resume=True)


def _heard(run: RunDirectory) -> AbstractContextManager[None]:
    """Have the process that started this one hear of the progress, where it is another one."""
    return nullcontext() if parent_process() is None else written(run.path)
