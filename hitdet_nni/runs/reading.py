"""A run directory in whatever state it is, read and checked as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.config.validation import validated
from hitdet_nni.io import WEIGHTS_FILE, read_json, read_yaml
from hitdet_nni.runs.benchmark import Benchmark, read_benchmark
from hitdet_nni.runs.front import FrontRow, read_front
from hitdet_nni.runs.reliability import Reliability, read_reliability
from hitdet_nni.runs.result import Result, read_result
from hitdet_nni.runs.run_directory import find_run
from hitdet_nni.runs.rungs import PausedTraining, read_rungs
from hitdet_nni.runs.samples import TriedArchitecture, read_samples
from hitdet_nni.runs.tables import AlphaHistory, EpochMetrics, Score, read_alphas, read_metrics, read_scores
from hitdet_nni.runs.training_log import TrainingLog, read_training_log


class ImageCounts(BaseModel):
    """How many images a run has; ``None`` where it has not noted that."""

    model_config = ConfigDict(frozen=True)

    train: PositiveInt | None = None
    val: PositiveInt | None = None


class Metadata(BaseModel):
    """``metadata.json``; an older version of the package may have written less, a newer one more."""

    model_config = ConfigDict(frozen=True)

    started: str | None = None
    seed: int | None = None
    git_commit: str | None = None
    command: list[str] = []
    python: str | None = None
    machine: str | None = None
    versions: dict[str, str] = {}
    images: ImageCounts = Field(ImageCounts(), description="numbers of training and validation images")
    seconds: dict[str, NonNegativeFloat] = Field({}, description="wall time by stage")
    warnings: dict[str, list[str]] = Field({}, description="what the signs of health give reason to doubt, by stage")


class Baseline(BaseModel):
    """``baseline.json``: which mmdet config was trained."""

    model_config = ConfigDict(frozen=True)

    baseline: str


@dataclass(frozen=True)
class Run:
    """Everything that a page says of a run.

    Attributes:
        path: The run directory.
        name: Its name.
        settings: The resolved settings.
        metadata: Commit, seed, versions, machine, seconds, warnings.
        scores: Screening scores of each component that has been screened.
        reliability: How far the supernets that have screened a component agree, where there are several.
        space: The sub search space, once all components have been screened.
        metrics: What was measured after each epoch of the search.
        alphas: The architecture parameters after each epoch of the search.
        samples: The architectures that were tried in the supernet, where the search decides by them.
        front: The architectures of a front of the supernet, and what was compared with them.
        architecture: The decided architecture.
        baseline: Name of the baseline that the run trains, if it is one.
        training: The curves of the retraining.
        trainings: The trainings by which the architecture was chosen among several, at each of their pauses.
        result: What the retraining ended with.
        weights: File of the trained weights, if it is there.
        benchmark: Accuracy and latency of the exported files, if some were measured.
    """

    path: Path
    name: str
    settings: Settings
    metadata: Metadata
    scores: dict[Component, tuple[Score, ...]]
    reliability: dict[Component, Reliability]
    space: SearchSpace | None
    metrics: tuple[EpochMetrics, ...]
    alphas: AlphaHistory
    samples: tuple[TriedArchitecture, ...]
    front: tuple[FrontRow, ...]
    architecture: Architecture | None
    baseline: str | None
    training: TrainingLog
    trainings: tuple[PausedTraining, ...]
    result: Result | None
    weights: Path | None
    benchmark: Benchmark | None

    @property
    def is_study(self) -> bool:
        """Whether a study has begun it."""
        return self.metadata.command[1:2] == ["study"]


def read_run(path: Path) -> Run:
    """Read a run directory.

    Args:
        path: The directory; every file in it but ``config.yml`` may be absent.

    Raises:
        InputError: If it is not a run directory, or a file in it is damaged.
    """
    found = find_run(path)
    weights = found.retrain / WEIGHTS_FILE
    return Run(
        path=path,
        name=path.resolve().name,
        # Not `load_settings`: paths in a user's config are relative to its folder, those in a run's are resolved.
        settings=validated(Settings, found.config, read_yaml(found.config)),
        metadata=validated(Metadata, found.metadata, read_json(found.metadata))
        if found.metadata.is_file()
        else Metadata(),
        scores={
            component: read_scores(found.scores(component))
            for component in COMPONENTS
            if found.scores(component).is_file()
        },
        reliability={
            component: read_reliability(found.reliability(component))
            for component in COMPONENTS
            if found.reliability(component).is_file()
        },
        space=load_search_space(found.sub_spaces) if found.sub_spaces.is_file() else None,
        metrics=read_metrics(found.search_metrics) if found.search_metrics.is_file() else (),
        alphas=read_alphas(found.alphas) if found.alphas.is_file() else {},
        samples=read_samples(found.samples) if found.samples.is_file() else (),
        front=read_front(found.front_table) if found.front_table.is_file() else (),
        architecture=load_architecture(found.architecture) if found.architecture.is_file() else None,
        baseline=validated(Baseline, found.baseline, read_json(found.baseline)).baseline
        if found.baseline.is_file()
        else None,
        training=read_training_log(found.retrain),
        trainings=read_rungs(found.rung_table) if found.rung_table.is_file() else (),
        result=read_result(found.metrics) if found.metrics.is_file() else None,
        weights=weights if weights.is_file() else None,
        benchmark=read_benchmark(found.benchmark) if found.benchmark.is_file() else None,
    )
