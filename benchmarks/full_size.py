"""The paper's setting on one GPU, not estimated but run: time and memory of a search step, and the largest batch.

Supernets of the config's size on random images and boxes. A batch counts as held when a whole step of both phases,
optimiser included, has run with it.

    python benchmarks/full_size.py             # about ten minutes on a GPU of 80 GB
    python benchmarks/full_size.py --json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from largest_batch import CLASSES, cases
from measure import Held, climb, echo, seconds, surroundings
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.strategy import DARTS

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.engine.machine import is_out_of_memory
from hitdet_nni.engine.precision import Precision, PrecisionKind
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.model.searchable import ALPHA
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.mixed import ACTIVATION_MODES, ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS

STOCK = "NNI"
BOXES = 7
"""Boxes of an image, as in COCO."""


@dataclass(frozen=True)
class SizeFigures:
    """What one way to compute a supernet needs.

    Attributes:
        case: The supernet.
        candidates: Operators of a searched layer.
        implementation: ``"NNI"`` or a value of ``supernet.activations``.
        precision: Type of the activations.
        forward_g: Multiply-adds of a forward pass of one image, 10^9.
        batch: Images of each phase of a step; 0 where the GPU holds none.
        seconds: A step of both phases with their updates, median; ``None`` for batch 0.
        gb: Largest memory of tensors in a step over what is held before it, GB.
        largest: Whether no larger batch was held.
    """

    case: str
    candidates: int
    implementation: str
    precision: str
    forward_g: float
    batch: int
    seconds: float | None
    gb: float | None
    largest: bool


class Trainer:
    """A supernet on the GPU with both its optimisers.

    Args:
        skeleton: The detector's skeleton.
        space: Operators of each component.
        implementation: ``"NNI"`` or a value of ``supernet.activations``.
        precision: Type of the activations.
        device: The GPU.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        space: Mapping[str, Sequence[str]],
        implementation: str,
        precision: PrecisionKind,
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        self.skeleton = skeleton
        self.device = device
        self.precision = Precision(precision, device)
        self.model = HitDetectorSpace(skeleton, space, CLASSES)  # type: ignore[arg-type]
        self.freezes = implementation != STOCK
        if self.freezes:
            self.model.to(memory_format=torch.channels_last)
            ColumnSparseDARTS().mutate_model(self.model)
            set_activations(self.model, implementation)  # type: ignore[arg-type]
        else:
            DARTS().mutate_model(self.model)
        self.model.to(device).train()
        self.model.detector.data_preprocessor.to(device)
        layers = [m for m in self.model.modules() if isinstance(m, DifferentiableMixedLayer | ColumnSparseMixedLayer)]
        self.alphas = [getattr(layer, ALPHA) for layer in layers]
        architecture = {id(alpha) for alpha in self.alphas}
        self.weights = [parameter for parameter in self.model.parameters() if id(parameter) not in architecture]
        self.optimizers = (torch.optim.Adam(self.alphas, 1e-4), torch.optim.SGD(self.weights, 1e-4, momentum=0.9))

    def batch(self, size: int, seed: int) -> dict[str, Any]:
        """Random images of the full size, with random boxes."""
        generator = torch.Generator().manual_seed(seed)
        height, width = self.skeleton.input_size
        samples = []
        for _ in range(size):
            corner = torch.rand(BOXES, 2, generator=generator) * torch.tensor([width, height]) * 0.7
            side = 32 + torch.rand(BOXES, 2, generator=generator) * torch.tensor([width, height]) * 0.25
            labels = torch.randint(CLASSES, (BOXES,), generator=generator)
            shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
            sample = DetDataSample(metainfo={"img_id": 0, **shape})
            sample.gt_instances = InstanceData(bboxes=torch.cat([corner, corner + side], 1), labels=labels)
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
            samples.append(sample)
        inputs = [torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in samples]
        return {"inputs": inputs, "data_samples": samples}

    def step(self, batch: dict[str, Any]) -> None:
        """Both phases of a step, with their updates; stock NNI computes all gradients in both."""
        both = (self.alphas, self.weights)
        for (trained, others), optimizer in zip((both, both[::-1]), self.optimizers, strict=True):
            for parameter in trained:
                parameter.requires_grad_()
            for parameter in others:
                parameter.requires_grad_(not self.freezes)
            with self.precision.autocast():
                loss = detection_loss(self.model.detector, batch)
            self.precision.backward(loss)
            self.precision.step(optimizer, trained, 35.0)
            for parameter in (*trained, *others):
                parameter.grad = None


def hold(trainer: Trainer, size: int, rounds: int) -> Held | None:
    """What steps with a batch need, in the median of some rounds; ``None`` where the GPU has too little memory."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(trainer.device)
    before = torch.cuda.memory_allocated(trainer.device)
    batch = trainer.batch(size, size)
    try:
        times = [seconds(lambda: trainer.step(batch), trainer.device) for _ in range(rounds + 1)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        trainer.model.zero_grad(set_to_none=True)
        return None
    peak = torch.cuda.max_memory_allocated(trainer.device) - before
    return peak / 1e9, statistics.median(times[1:])


def measure(
    name: str,
    skeleton: Skeleton,
    space: Mapping[str, Sequence[str]],
    implementation: str,
    precision: PrecisionKind,
    rounds: int,
    device: torch.device,
) -> list[SizeFigures]:
    """Run a supernet with one image, two, and the largest batch that the GPU holds.

    Args:
        name: What the supernet is.
        skeleton: The detector's skeleton.
        space: Operators of each component.
        implementation: ``"NNI"`` or a value of ``supernet.activations``.
        precision: Type of the activations.
        rounds: Steps that are timed, at least one.
        device: The GPU.
    """
    gc.collect()
    torch.cuda.empty_cache()
    trainer = Trainer(skeleton, space, implementation, precision, device)
    hold(trainer, 1, 1)  # makes the optimisers' states, and lets libraries choose
    found = {size: held for size in (1, 2) if (held := hold(trainer, size, rounds)) is not None}
    if len(found) == 2:
        memory = torch.cuda.get_device_properties(device).total_memory
        free = (memory - torch.cuda.memory_allocated(device)) / 1e9
        found |= climb(lambda size: hold(trainer, size, rounds), found, free)[0]
    costs = CostModel(skeleton, CLASSES, proposals=skeleton.roi_samples)
    candidates = [
        costs.layer_cost(layer, operator).flops for layer in costs.layers for operator in space[layer.component]
    ]
    forward = (sum(candidates) + sum(layer.cost.flops for layer in costs.fixed)) / 1e9
    described = (name, max(len(names) for names in space.values()), implementation, precision, forward)
    if not found:
        return [SizeFigures(*described, 0, None, None, True)]
    return [SizeFigures(*described, size, spent, gb, size == max(found)) for size, (gb, spent) in found.items()]


def line(figures: SizeFigures) -> str:
    """One row of the table."""
    words = (
        f"{figures.case:20} {figures.candidates:5} {figures.implementation:10} {figures.precision} {figures.batch:5}"
    )
    if figures.seconds is None or figures.gb is None:
        return f"{words} more memory than there is"
    images = figures.batch / figures.seconds
    return f"{words} {figures.seconds:8.3f} s {figures.gb:6.2f} GB {images:6.2f} images/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--config", default="coco_paper", help="config (default: coco_paper)")
    parser.add_argument("--only", default="", help="supernets whose name contains this")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16", "fp16"))
    parser.add_argument(
        "--implementations", nargs="+", default=[STOCK, *ACTIVATION_MODES], choices=[STOCK, *ACTIVATION_MODES]
    )
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed (default: 3)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    prepare_process(1)
    logging.disable(logging.WARNING)
    device = torch.device("cuda", 0)
    settings = load_settings(options.config)
    report = surroundings(device) | {
        "nni": version("nni"),
        "config": options.config,
        "input_size": settings.skeleton.input_size,
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9,
        "figures": [],
    }
    if not options.json:
        echo(" | ".join(f"{key}: {value}" for key, value in report.items() if key != "figures"))
    chosen = {name: case for name, case in cases(settings).items() if options.only in name}
    with suppress(KeyboardInterrupt):  # what has been measured counts
        for (name, case), precision, implementation in product(
            chosen.items(), options.precision, options.implementations
        ):
            found = measure(name, *case, implementation, precision, options.rounds, device)
            report["figures"] += [asdict(figures) for figures in found]
            if not options.json:
                for figures in found:
                    echo(line(figures))
    if options.json:
        echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
