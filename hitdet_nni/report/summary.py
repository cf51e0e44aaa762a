"""The head of a run's page: its state, what was searched, and its headline figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.wording import counted
from hitdet_nni.report.axes import number
from hitdet_nni.report.precisions import percent
from hitdet_nni.runs.benchmark import FileBenchmark
from hitdet_nni.runs.goal import is_searched_here
from hitdet_nni.runs.reading import ImageCounts, Run
from hitdet_nni.runs.result import Result
from hitdet_nni.runs.run_directory import RunDirectory

KINDS = {"faster_rcnn": "Faster R-CNN (two stages)", "retinanet": "RetinaNet (one stage)"}


@dataclass(frozen=True)
class Figure:
    """A headline figure.

    Attributes:
        name: What it is.
        value: The number as text.
        note: Unit and condition.
    """

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Size:
    """What a decided architecture, or a baseline, costs, by multiply-adds at its own padded input size.

    Attributes:
        params_m: Parameters, in millions.
        gflops: Multiply-adds, in 10^9.
        input_size: Height and width of the padded input.
        proposals: RoIs that the head sees; 0 where there are none.
    """

    params_m: float
    gflops: float
    input_size: str
    proposals: int


def size_of(run: Run) -> Size | None:
    """Return the cost of a run's architecture or trained baseline; ``None`` where neither is there or counted."""
    if run.architecture is None:
        return _size_of_result(run.result)
    model = CostModel(run.architecture.skeleton, run.architecture.num_classes)
    total = model.architecture(run.architecture.sample)["total"]
    return Size(total.params_m, total.gflops, f"{model.shape[0]} × {model.shape[1]}", model.proposals)


def _size_of_result(result: Result | None) -> Size | None:
    if result is None or result.params_m is None or result.gflops is None or result.shape is None:
        return None
    height, width = result.shape
    return Size(result.params_m, result.gflops, f"{height} × {width}", result.proposals or 0)


def state_of(run: Run) -> str:
    """Tell how far a run has come, in a sentence."""
    if run.is_study:
        return "A study."
    if run.result is not None:
        return "Retrained and evaluated." if run.baseline is None else "A baseline, trained and evaluated."
    evaluated = run.training.evaluations[-1][0] if run.training.evaluations else 0
    if run.training.losses or run.training.evaluations:
        seen = int(max([evaluated, *(place for place, _ in run.training.losses[-1:])]))
        what = "Retraining" if run.baseline is None else "Training of a baseline"
        return f"{what} unfinished after {seen} of {run.settings.retrain.epochs} epochs: going on, or interrupted."
    if run.architecture is not None:
        how = "Searched" if run.alphas else "Holds an architecture"
        return f"{how}; not retrained."
    if run.alphas:
        done = max(run.alphas) + 1
        return f"Search unfinished after {done} of {run.settings.search.epochs} epochs: going on, or interrupted."
    if run.space is not None:
        return "Screened; not searched." if run.scores else "Sub search space given; not searched."
    if run.scores:
        return f"Screening unfinished, done are {', '.join(run.scores)}: going on, or interrupted."
    return "Begun; no stage has ended."


def goal_of(run: Run) -> tuple[str, str, str] | None:
    """Return what bounds the cost in a run's search: a budget or the weight lambda; name, value and unit.

    Args:
        run: The run; of a baseline, or a retraining of what another search has found, there is none.
    """
    if run.baseline is not None or not is_searched_here(RunDirectory(run.path)):
        return None
    budget = run.settings.search.budget
    if budget is None and run.is_study:  # of which many have no search
        return None
    if budget is None:
        return "λ", number(run.settings.search.flops_weight), "weight of a GFLOP in the search's loss"
    return "budget", number(budget.limit), UNITS[budget.key].name


def figures(run: Run) -> list[Figure]:
    """Return the headline figures that a run has so far."""
    found = []
    if run.result is not None:
        found.append(Figure("mAP", percent(run.result.metrics["mAP"]), "percent, COCO's AP on the validation images"))
    size = size_of(run)
    if size is not None:
        found.append(Figure("Parameters", number(size.params_m), "millions"))
        rois = f", {size.proposals} RoIs" if size.proposals else ""
        found.append(Figure("Cost", number(size.gflops), f"GFLOPs (multiply-adds) at {size.input_size}{rois}"))
    latency = None if run.architecture is None else run.architecture.provenance.latency
    if latency is not None:
        how = (
            f"{latency.runtime} on {latency.device}, {counted(latency.threads, '{thread|threads}')}, {latency.machine}"
        )
        found.append(Figure("Latency", number(latency.milliseconds), f"ms an image by the table: {how}"))
    if run.benchmark is not None and run.benchmark.files:
        found.append(_of_exported_file(run.benchmark.files))
    goal = goal_of(run)
    if goal is not None:
        name, value, unit = goal
        found.append(Figure(name.capitalize() if name == "budget" else name, value, unit))
    if run.metadata.seconds:
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in run.metadata.seconds.items())
        found.append(Figure("Time", duration(sum(run.metadata.seconds.values())), stages))
    return found


def _of_exported_file(files: Sequence[FileBenchmark]) -> Figure:
    """Return the headline figure of the exported file that is the fastest."""
    one = min(files, key=lambda file: file.latency_ms.p50)
    which = one.name if len(files) == 1 else f"{one.name}, the fastest of {len(files)}"
    times = (
        f"ms an image in the median ({number(one.latency_ms.p90)} at the 90th percentile): {which}, {one.conditions}"
    )
    note = f"{times}; mAP of this file {percent(one.metrics['mAP'])} percent"
    return Figure("Exported file", number(one.latency_ms.p50), note)


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 3.6e6 else f"{seconds / 3600:.0f} h"


def searched(run: Run, counts: ImageCounts) -> Iterator[tuple[str, str]]:
    """Yield what was searched, or which baseline was trained, as terms and descriptions.

    Args:
        run: The run.
        counts: Its numbers of images, as far as they are known.
    """
    if run.baseline is not None:
        height, width = run.settings.skeleton.input_size
        yield "baseline", f"{run.baseline}, input {height} × {width}"
        yield "images", images_of(run.settings.data, counts)
        return
    skeleton = run.settings.skeleton if run.architecture is None else run.architecture.skeleton
    (height, width), padded = skeleton.input_size, skeleton.padded_size
    also = "" if padded == (height, width) else f", padded to {padded[0]} × {padded[1]}"
    yield "detector", f"{KINDS[skeleton.detector]}, input {height} × {width}{also}"
    for component in COMPONENTS:
        layers = len(skeleton.labels(component))
        if run.space is None:
            yield component, f"{layers} layers"
        else:
            yield component, f"{layers} layers, {len(run.space[component])} operators each"
    yield "images", images_of(run.settings.data, counts)
    if run.architecture is not None:
        classes = run.architecture.provenance.classes
        some = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
        yield "classes", f"{len(classes)}: {some}"


def validation_of(settings: Settings) -> str:
    """Say which images a run validates on; equal where average precisions compare."""
    data = settings.data
    if data.builtin is not None:
        seed = data.seed_of(settings.seed)
        return f"the embedded {data.builtin}, {data.val} of {data.size} pixels, drawn by seed {seed}"
    if data.val_ann is None:
        part = f"its validation part, or {data.val_share:g} of every class by val_seed {data.val_seed}"
        return f"{os.path.realpath(str(data.root))}, {part}"
    chosen = "" if data.val_ids is None else f" (those of {os.path.realpath(data.val_ids)})"
    return f"{os.path.realpath(data.val_ann)}{chosen}"


def images_of(data: DataSettings, counts: ImageCounts) -> str:
    """Say which images a run has: where they are from and how many they are.

    Args:
        data: The ``data`` section of its settings.
        counts: Their numbers, as far as they are known.
    """
    if data.builtin is not None:
        return f"the embedded {data.builtin}, {data.train} for training, {data.val} for validation, {data.size} pixels"
    numbers = {"training": counts.train, "validation": counts.val}
    told = ", ".join(f"{number} for {purpose}" for purpose, number in numbers.items() if number is not None)
    if data.is_recognised and not data.train_sources and data.val_ann is None:
        root = os.path.normpath(str(data.root))  # one that a program names beside itself has .. in it
        return f"{root}: {told}" if told else f"{root}, for training and validation"
    trained = " and ".join(str(ann) for ann, _ in data.train_sources) or str(data.root)
    less = "" if data.train_without is None else f" without those of {data.train_without}"
    chosen = [f" (those of {ids})" if ids is not None else "" for ids in (data.train_ids, data.val_ids)]
    sources = f"{trained}{chosen[0]}{less} for training, {data.val_ann or data.root}{chosen[1]} for validation"
    return f"{sources}: {told}" if told else sources
