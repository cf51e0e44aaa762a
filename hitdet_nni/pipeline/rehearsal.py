"""What the stages will take on this machine, by some steps of each."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.annotations.merging import one_annotation_file
from hitdet_nni.data.loaders import resolve_num_workers
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.progress import Progress, listening
from hitdet_nni.io import write_json
from hitdet_nni.nas.memory.estimate import peak_memory
from hitdet_nni.nas.outlook import largest_half, screening_supernets, stage_steps
from hitdet_nni.nas.screening import screening_groups, screening_stage
from hitdet_nni.nas.screening_reliability import share_of
from hitdet_nni.pipeline.retraining import retrain_architecture
from hitdet_nni.pipeline.screening import screen
from hitdet_nni.pipeline.search import STAGE as SEARCH
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.runner_config import STAGE as RETRAIN

STEPS = 2
"""Steps of a rehearsal's epoch. The first of an epoch, in which libraries and loaders warm up, does not count."""

EPOCHS = 2
"""Epochs of a stage's rehearsal; in the first one the architecture parameters rest, if they do in the stage."""

SAMPLES = "samples"
"""What the trying of architectures is called behind its stage's name."""


@dataclass(frozen=True)
class Course:
    """How long a stage goes on.

    Attributes:
        epochs: Its epochs.
        steps: Steps an epoch.
        resting: Epochs at the beginning in which the architecture parameters rest.
        evaluated: Images that are evaluated, of all evaluations together.
    """

    epochs: int
    steps: float
    resting: int = 0
    evaluated: int = 0


class StageClock:
    """A listener that notes what steps and evaluations take."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.evaluations: dict[str, list[float]] = defaultdict(list)
        self._last: tuple[Progress, float] | None = None

    def __call__(self, progress: Progress) -> None:
        """Note the time since what was told before."""
        now = time.perf_counter()
        if self._last is not None and self._last[0].stage == progress.stage:
            last, then = self._last
            if last.doing == "evaluating":
                self.evaluations[progress.stage].append(now - then)
            elif progress.step > last.step:
                self.steps[progress.stage][progress.epoch].append(now - then)
        self._last = progress, now

    def seconds(self, stage: str, course: Course, evaluated: int) -> float:
        """Return what a stage takes.

        Args:
            stage: Its name.
            course: How long it goes on.
            evaluated: Images of an evaluation that was timed.
        """
        epochs = self.steps[stage]
        resting, moving = (_mean(epochs[number][1:] or epochs[number]) for number in (min(epochs), max(epochs)))
        steps = course.steps * (course.resting * resting + (course.epochs - course.resting) * moving)
        return steps + course.evaluated * _mean(self.evaluations[stage][-1:] or [0.0]) / evaluated


@dataclass(frozen=True)
class Rehearsal:
    """What the stages will take.

    Attributes:
        seconds: Time of each stage, by its name.
        peak: Bytes that a process has held at most: of a GPU, or of the machine's memory.
    """

    seconds: Mapping[str, float]
    peak: int


def rehearse(
    folder: Path, settings: Settings, data: DetectionData, space: SearchSpace, *, screens: bool = True
) -> Rehearsal:
    """Do every stage for a few steps, and return what all steps will take.

    Operators that a screening removes on the way, and whatever else the machine does meanwhile, make the difference to
    what it takes in the end.

    Args:
        folder: An empty folder, which the stages write to.
        settings: All settings, for the number of images.
        data: The images, of which a few are trained on.
        space: What is searched.
        screens: Whether the components are screened first.

    Raises:
        InputError: If no architecture of the space keeps the budget, or there are too few images.
        NonFiniteLossError: If a loss is NaN or infinite.
    """
    operators, clock = max(map(len, space.values())), StageClock()
    with _quiet(), listening(clock):
        few, short = _few_images(settings, data, folder), _shortened(settings, data, operators)
        run = RunDirectory(folder / "run")
        run.open(short)
        found = search(run, screen(run, space, short, few) if screens else space, short, few)
        retrain_architecture(run, found, short, few)
    seconds: dict[str, float] = defaultdict(float)
    for stage, course in _courses(settings, data, operators, space if screens else None):
        seconds[stage.partition(",")[0]] += clock.seconds(stage, course, len(few.val.image_ids))
    return Rehearsal(seconds, max(distributed.gather(peak_memory(distributed.device()))))


def _few_images(settings: Settings, data: DetectionData, folder: Path) -> DetectionData:
    """Return the images of a rehearsal: of those with boxes some from the beginning of each split to its end."""
    batch = settings.data.batch_size * distributed.world_size()

    def few(annotations: CocoAnnotations, count: int, split: str) -> CocoAnnotations:
        ids = [image for image in annotations.image_ids if annotations.image_classes[image]]
        chosen = folder / f"{split}_ids.json"
        if distributed.is_main():
            write_json(chosen, ids[:: max(1, len(ids) // count)][:count])
        distributed.barrier()
        parts = [(annotations.ann, annotations.images)]
        source = one_annotation_file(parts, folder, split=split, only=chosen, without=None)
        return read_annotations(*source, key=annotations.key, allow_empty_boxes=True)

    return DetectionData(few(data.train, 2 * STEPS * batch, "train"), few(data.val, 2 * batch, "val"))


def _shortened(settings: Settings, data: DetectionData, operators: int) -> Settings:
    """Return settings of stages of a few steps, whose loaders have as many workers and keep as little in memory."""
    loaders = resolve_num_workers(settings.data, settings.skeleton, data.train, data.val)
    images = STEPS * loaders.batch_size
    share = min(1, 2 * images * distributed.world_size() / len(data.train.image_ids))
    by_samples = settings.screening.rank_by == "samples"
    changes: dict[str, dict[str, object]] = {
        "screening": {
            "epochs": 1 if by_samples else EPOCHS,
            "warmup_epochs": 0 if by_samples else min(1, settings.screening.warmup_epochs),
            "supernets": 1,
            "samples": operators,
            "sample_images": images,
        },
        "search": {
            "epochs": EPOCHS,
            "warmup_epochs": min(1, settings.search.warmup_epochs),
            "samples": 4,
            "sample_images": images,
        },
        "retrain": {"epochs": EPOCHS, "val_interval": EPOCHS, "patience": None},
        "pretrain": {"boxes": False},
    }
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()}
    changed["data"] = loaders.model_copy(update={"cache_mb": math.ceil(share * loaders.cache_mb)})
    return settings.model_copy(update=changed)


def _courses(
    settings: Settings, data: DetectionData, operators: int, screened: SearchSpace | None
) -> Iterator[tuple[str, Course]]:
    """Yield the stages, and the trying of architectures within them, as they are to go on."""
    half, val = largest_half(data, settings), len(data.val.image_ids)
    steps = stage_steps(settings, data, screened)

    def tried(samples: int, images: int) -> Course:
        """Return the trying of some architectures, by batches as large as the rehearsal's."""
        at_once = STEPS * settings.data.batch_size * distributed.world_size()
        return Course(1, samples * min(images, half) / at_once)

    if screened is not None:
        supernets = screening_supernets(settings, data)
        share = share_of(settings.screening, supernets, operators)
        epochs = supernets * share.epochs
        by_samples = share.rank_by == "samples"
        for components in screening_groups(share, screened):
            stage = screening_stage(components)
            resting = 0 if by_samples else supernets * share.warmup_epochs
            yield stage, Course(epochs, steps[stage] / epochs, resting, epochs * val)
            if by_samples:
                yield f"{stage}, {SAMPLES}", tried(supernets * share.samples, share.sample_images)
    given = settings.search
    yield SEARCH, Course(given.epochs, steps[SEARCH] / given.epochs, given.warmup_epochs, given.epochs * val)
    if given.decode == "samples":
        yield f"{SEARCH}, {SAMPLES}", tried(given.samples, given.sample_images)
    training = settings.retrain
    evaluations = 1 + math.ceil(training.epochs / training.val_interval)
    yield RETRAIN, Course(training.epochs, steps[RETRAIN] / training.epochs, 0, evaluations * val)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out notes and warnings within the context: they would be of a supernet that has learned nothing."""
    notes = logging.getLogger("hitdet_nni")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notes.setLevel(level)
