"""Many retrainings under one protocol."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.io import writing
from hitdet_nni.nas.provenance import keep_architecture
from hitdet_nni.pipeline.retraining import retrain_architecture
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.jobs import Job, Work, opened, run_jobs, seeded
from hitdet_nni.training.runner_config import STAGE


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
        gflops: GFLOPs (multiply-adds) at the skeleton's padded input size.
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


def with_deviation(mean: float, deviation: float | None, over: object = None) -> str:
    """Return a mean in words, with its standard deviation where there is one.

    Args:
        mean: The mean.
        deviation: Standard deviation, ``None`` of one value.
        over: What it is over.
    """
    if deviation is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} (sd {deviation:.3f}{'' if over is None else f' over {over}'})"


@dataclass(frozen=True)
class Retraining(Job):
    """One retraining of a study.

    Attributes:
        architecture: What is trained.
        begun: The run directory of a training that has paused, which it goes on with; ``None`` begins it.
    """

    architecture: Architecture
    begun: RunDirectory | None = None


OnResult = Callable[[int, int, Retraining, dict[str, Any]], None]
"""Told of retrainings as they end: how many have, how many there are, which, and the content of ``metrics.json``."""


@dataclass(frozen=True)
class Protocol:
    """How all architectures of a study are trained.

    Attributes:
        settings: All settings; the first seed is theirs, the others follow it, on the same images.
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

    def retrain(self, architectures: Mapping[str, Architecture]) -> list[Trained]:
        """Train every architecture with every seed; what is trained already is not trained again.

        Args:
            architectures: What to train, by name.

        Raises:
            InputError: If a folder holds something else.
        """
        jobs = [
            Retraining(own, self.folder / f"{name}-seed-{own.seed}", one)
            for name, one in architectures.items()
            for own in seeded(self.settings, self.seeds)
        ]
        work = Work(STAGE, retrain_once, lambda result: {"mAP": result["mAP"]})
        results = run_jobs(work, jobs, self.processes, self.on_result)
        trained = []
        for number, (name, one) in enumerate(architectures.items()):
            own = results[number * self.seeds : (number + 1) * self.seeds]
            accuracies = tuple(result["mAP"] for result in own)
            trained.append(Trained(name, one.sample, own[0]["params_m"], own[0]["gflops"], accuracies))
        return trained


def retrain_once(one: Retraining) -> dict[str, Any]:
    """Retrain an architecture, or read what that ended with; return the content of ``metrics.json``."""
    with opened(one) as run:
        if distributed.is_main():
            keep_architecture(run, one.architecture)
        images = open_data(one.settings.data, one.settings.seed, one.architecture.skeleton.input_size)
        if one.begun is not None:
            go_on_from(one.begun, run)
        with run.timed(STAGE):
            return retrain_architecture(run, one.architecture, one.settings, images, resume=True)


def go_on_from(begun: RunDirectory, run: RunDirectory) -> None:
    """Have a run go on with a training that has paused, unless it does so already or has ended.

    Where its checkpoints are gone the run begins anew, and ends the same.

    Args:
        begun: The run directory of the training; its checkpoints become the run's.
        run: The run that goes on with it.

    Raises:
        WriteError: If the run cannot be written.
    """
    paused, checkpoints = begun.checkpoints(STAGE), run.checkpoints(STAGE)
    if distributed.is_main() and paused.exists() and not (run.metrics.exists() or checkpoints.exists()):
        with writing(run.path):
            shutil.copytree(begun.retrain, run.retrain, dirs_exist_ok=True)
            checkpoints.parent.mkdir(parents=True, exist_ok=True)
            paused.rename(checkpoints)
    distributed.barrier()
