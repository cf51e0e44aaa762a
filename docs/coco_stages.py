"""What the stages of the COCO pipeline ask for: the tables of ``coco.md``, between its markers.

python docs/coco_stages.py            # multiply-adds and checkpoints, in seconds
python docs/coco_stages.py --memory   # memory of a step, too: builds the supernets, which takes minutes and 2 GB
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.memory.estimate import estimate_step_memory
from hitdet_nni.nas.mixed import set_activations
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.costs import Cost

PAGE = Path(__file__).resolve().parent / "coco.md"

COCO_IMAGES = 118_287
"""Training images of trainval35k, and of 2017."""

IMAGENET_IMAGES = 1_281_167
COCO_CLASSES, IMAGENET_CLASSES = 80, 1000
GPUS = 8
RATE = 3e12
"""Multiply-adds a second and GPU for which hours are stated."""

FORWARD_BACKWARD = 3
"""A training step in units of its forward pass: the pass, the gradients of the inputs, those of the kernels."""

ARCHITECTURE_PHASE = 2
"""The same for the phase of a search step that trains the architecture parameters alone: no gradients of kernels."""

BYTES_OF_A_WEIGHT = 8
"""In a checkpoint: the weight and its momentum, 4 each."""


@dataclass(frozen=True)
class Stage:
    """One stage, with 8 GPUs.

    Attributes:
        name: What it is called.
        epochs: Its epochs.
        steps: Steps of an epoch.
        forward: Multiply-adds of a forward pass of one image before anything is removed.
        total: Multiply-adds of the whole stage, all GPUs.
        weights: Parameters of what is trained.
    """

    name: str
    epochs: int
    steps: int
    forward: float
    total: float
    weights: int


def supernet_cost(model: CostModel, space: Mapping[Component, Sequence[str]], parts: Sequence[str]) -> Cost:
    """Every candidate of every layer, and the layers that are not searched; of the named parts."""
    searched = (
        model.layer_cost(layer, name)
        for layer in model.layers
        if layer.component in parts
        for name in space[layer.component]
    )
    fixed = (layer.cost for layer in model.fixed if layer.part in parts)
    return sum((*searched, *fixed), Cost())


DETECTOR = (*COMPONENTS, "rpn")


def candidates_of(stage: str, settings: Settings, space: SearchSpace) -> SearchSpace:
    """Candidates of each component in the screening of one, all others being fixed."""
    return {part: space[part] if part == stage else [getattr(settings.screening.fixed, part)] for part in COMPONENTS}


def screening_stage(component: Component, settings: Settings, space: SearchSpace) -> Stage:
    """The screening of one component, whose active operators become fewer after the warm-up."""
    screening, skeleton = settings.screening, halved_depth(settings)
    model = CostModel(skeleton, COCO_CLASSES, proposals=skeleton.roi_samples)
    candidates = candidates_of(component, settings, space)
    pruning = PruningSchedule({part: getattr(screening.keep, part) for part in COMPONENTS})
    whole = supernet_cost(model, candidates, DETECTOR)
    alone = supernet_cost(model, {**candidates, component: []}, DETECTOR).flops
    names, images, total = len(space[component]), COCO_IMAGES // 2, 0.0
    left = names
    for epoch in range(screening.epochs):
        forward = alone + (whole.flops - alone) * left / names  # the mean candidate stands for those that remain
        units = FORWARD_BACKWARD + (ARCHITECTURE_PHASE if epoch >= screening.warmup_epochs else 0)
        total += forward * units * images
        left = pruning.remaining(component, names, epoch, screening.warmup_epochs, screening.epochs)
    steps = images // (GPUS * settings.data.batch_size)
    return Stage(f"screening, {component}", screening.epochs, steps, whole.flops, total, whole.params)


def halved_depth(settings: Settings) -> Skeleton:
    """The skeleton of the screening supernet."""
    return settings.skeleton.model_copy(update={"depths": settings.screening.depths or settings.skeleton.depths})


def search_stage(settings: Settings, space: SearchSpace) -> Stage:
    """The trinity search in a screened space."""
    search, skeleton = settings.search, settings.skeleton
    model = CostModel(skeleton, COCO_CLASSES, proposals=skeleton.roi_samples)
    whole = supernet_cost(model, space, DETECTOR)
    images = COCO_IMAGES // 2
    units = FORWARD_BACKWARD * search.epochs + ARCHITECTURE_PHASE * (search.epochs - search.warmup_epochs)
    steps = images // (GPUS * settings.data.batch_size)
    return Stage("search", search.epochs, steps, whole.flops, whole.flops * units * images, whole.params)


def retraining_stage(settings: Settings, sample: Mapping[str, str]) -> Stage:
    """The retraining of the released architecture."""
    skeleton, epochs = settings.skeleton, settings.retrain.epochs
    cost = CostModel(skeleton, COCO_CLASSES, proposals=skeleton.roi_samples).architecture(sample)["total"]
    steps = COCO_IMAGES // (GPUS * settings.data.batch_size)
    total = float(cost.flops) * FORWARD_BACKWARD * epochs * COCO_IMAGES
    return Stage("retraining", epochs, steps, cost.flops, total, cost.params)


def pretraining_stage(
    name: str, settings: Settings, skeleton: Skeleton, candidates: Mapping[Component, Sequence[str]]
) -> Stage:
    """The pretraining of a backbone, with the operators of each of its layers, on ImageNet."""
    pretrain = settings.pretrain
    model = CostModel(skeleton, IMAGENET_CLASSES, shape=(pretrain.size, pretrain.size))
    cost = supernet_cost(model, candidates, ("backbone",))
    steps = IMAGENET_IMAGES // (GPUS * pretrain.batch_size)
    total = float(cost.flops) * FORWARD_BACKWARD * pretrain.epochs * IMAGENET_IMAGES
    return Stage(name, pretrain.epochs, steps, cost.flops, total, cost.params)


def found_backbone_stage(settings: Settings, sample: Mapping[str, str]) -> Stage:
    """The pretraining of the released backbone."""
    pretrain = settings.pretrain
    model = CostModel(settings.skeleton, IMAGENET_CLASSES, shape=(pretrain.size, pretrain.size))
    cost = model.architecture(sample)["backbone"]
    steps = IMAGENET_IMAGES // (GPUS * pretrain.batch_size)
    total = float(cost.flops) * FORWARD_BACKWARD * pretrain.epochs * IMAGENET_IMAGES
    return Stage("pretraining, found backbone", pretrain.epochs, steps, cost.flops, total, cost.params)


def stages() -> Iterator[Stage]:
    """All stages in their order; the published sub-spaces and architecture stand for what a run will find."""
    coco, supernet, found = (load_settings(name) for name in ("coco2014", "imagenet_supernet", "imagenet_found"))
    full, screened = load_search_space(coco.space), load_search_space("hit_detector")
    sample = load_architecture("hit_detector").sample
    yield pretraining_stage("pretraining, screening's supernet", supernet, halved_depth(supernet), full)
    for component in COMPONENTS:
        yield screening_stage(component, coco, full)
    yield pretraining_stage("pretraining, search's supernet", supernet, supernet.skeleton, screened)
    yield search_stage(coco, screened)
    yield found_backbone_stage(found, sample)
    yield retraining_stage(coco, sample)


def stages_table() -> str:
    """Multiply-adds, checkpoints and hours of every stage."""
    found = list(stages())
    header = ("stage", "epochs", "steps an epoch", "G of an image", "P in all", "checkpoint GB", "hours")
    rows = [
        (
            stage.name,
            str(stage.epochs),
            str(stage.steps),
            f"{stage.forward / 1e9:.1f}",
            f"{stage.total / 1e15:.0f}",
            f"{stage.weights * BYTES_OF_A_WEIGHT / 1e9:.2f}",
            f"{hours(stage.total):.0f}",
        )
        for stage in found
    ]
    total = sum(stage.total for stage in found)
    rows.append(("all", "", "", "", f"{total / 1e15:.0f}", "", f"{hours(total):.0f}"))
    return table(header, rows)


def hours(total: float) -> float:
    """Hours on 8 GPUs at :data:`RATE` each."""
    return total / (GPUS * RATE) / 3600


def memory_table() -> str:
    """GB of a step of each search stage on one GPU, by precision and what mixed layers keep."""
    coco = load_settings("coco2014")
    full, screened = load_search_space(coco.space), load_search_space("hit_detector")
    modes = (("fp32", "fused-low"), ("fp32", "fused-min"), ("fp32", "checkpoint"))
    rows = []
    for stage in (*COMPONENTS, "search"):
        searching = stage == "search"
        skeleton = coco.skeleton if searching else halved_depth(coco)
        space = HitDetectorSpace(skeleton, screened if searching else candidates_of(stage, coco, full), COCO_CLASSES)
        ColumnSparseDARTS().mutate_model(space)
        apply_batch_norm(space, "local")
        cells = []
        for precision, activations in modes:
            set_activations(space, activations)
            settings = coco.model_copy(update={"precision": precision})
            estimate = estimate_step_memory(space, settings, skeleton, torch.device("cuda"))
            cells.append(f"{estimate.total / 1e9:.0f}")
        rows.append((stage if searching else f"screening, {stage}", *cells))
    return table(("stage", *(f"{activations}, {precision}" for precision, activations in modes)), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is words."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def put(page: str, name: str, text: str) -> str:
    """The page with a table between the markers of a name."""
    begin, end = f"<!-- begin {name}: written by docs/coco_stages.py -->", f"<!-- end {name} -->"
    changed, count = re.subn(f"{begin}.*{end}", lambda _: f"{begin}\n\n{text}\n\n{end}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE} lacks a marker: {begin} or {end}")
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="write the table of memory, too")
    page = put(PAGE.read_text(encoding="utf-8"), "stages", stages_table())
    if parser.parse_args().memory:
        page = put(page, "memory", memory_table())
    PAGE.write_text(page, encoding="utf-8")
