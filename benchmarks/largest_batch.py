"""The largest batch of the paper's setting that one GPU holds, by the estimate that a search prints first.

No GPU is needed and none is asked: the tensors of a step are counted without data, those of the fused layers as the
programs of a GPU make them.

    python benchmarks/largest_batch.py             # several minutes
    python benchmarks/largest_batch.py --json
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from measure import echo, surroundings

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import COMPONENTS, Skeleton
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.memory.estimate import MemoryEstimate, estimate_step_memory
from hitdet_nni.nas.mixed import ACTIVATION_MODES, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS

CLASSES = 80
"""COCO's."""

BATCHES = (2, 3)
"""Batches that are estimated; memory grows by the same for each further image. Their images are padded to squares, as
those of a batch in which some are upright; one image by itself is not."""


@dataclass(frozen=True)
class BatchFigures:
    """What one way to compute mixed layers needs.

    Attributes:
        case: The supernet.
        candidates: Operators of a searched layer.
        implementation: A value of ``supernet.activations``.
        one_gb: GB of a step with one image of the input size over parameters and optimisers, as it is measured.
        fixed_gb: GB that do not depend on the batch.
        image_gb: GB an image.
        largest: Largest batch within the memory, 0 for none.
    """

    case: str
    candidates: int
    implementation: str
    one_gb: float
    fixed_gb: float
    image_gb: float
    largest: int


def cases(settings: Settings) -> dict[str, tuple[Skeleton, dict[str, Sequence[str]]]]:
    """Skeleton and operators of the search and of each component's screening, as the config has them."""
    published = load_search_space("hit_detector")
    everything = load_search_space(settings.space)
    fixed = {component: [getattr(settings.screening.fixed, component)] for component in COMPONENTS}
    shallow = settings.skeleton
    if settings.screening.depths is not None:
        shallow = shallow.model_copy(update={"depths": settings.screening.depths})
    found: dict[str, tuple[Skeleton, dict[str, Sequence[str]]]] = {"trinity": (settings.skeleton, dict(published))}
    for component in COMPONENTS:
        found[f"screening {component}"] = (shallow, {**fixed, component: list(everything[component])})
    found["screening all"] = (shallow, {component: list(everything[component]) for component in COMPONENTS})
    return found


def measure(
    name: str, skeleton: Skeleton, space: Mapping[str, Sequence[str]], settings: Settings, memory_gb: float
) -> list[BatchFigures]:
    """Estimate a supernet in all ways to compute it."""
    supernet = HitDetectorSpace(skeleton, space, CLASSES)  # type: ignore[arg-type]
    ColumnSparseDARTS().mutate_model(supernet)
    figures = []
    for activations in ACTIVATION_MODES:
        set_activations(supernet, activations)
        one = estimate(supernet, skeleton, settings, 1, upright=False)
        estimates = [estimate(supernet, skeleton, settings, batch, upright=True) for batch in BATCHES]
        needs = [found.total / 1e9 for found in estimates]
        image = (needs[1] - needs[0]) / (BATCHES[1] - BATCHES[0])
        fixed = needs[0] - BATCHES[0] * image
        largest = max(0, int((memory_gb - fixed) // image))
        candidates = max(len(names) for names in space.values())
        one_gb = (one.total - one.weights - one.optimisers) / 1e9
        figures.append(BatchFigures(name, candidates, activations, one_gb, fixed, image, largest))
    return figures


def estimate(
    supernet: HitDetectorSpace, skeleton: Skeleton, settings: Settings, batch: int, *, upright: bool
) -> MemoryEstimate:
    """Estimate a step with so many images on a GPU."""
    data = settings.data.model_copy(update={"batch_size": batch})
    chosen = settings.model_copy(update={"data": data})
    return estimate_step_memory(supernet, chosen, skeleton, torch.device("cuda"), upright=upright)


def main() -> None:
    """Estimate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--config", default="coco_paper", help="config (default: coco_paper)")
    parser.add_argument("--memory", type=float, default=80.0, metavar="GB", help="of the GPU (default: 80)")
    parser.add_argument("--only", default="", help="supernets whose name contains this")
    options = parser.parse_args()
    prepare_process(1)
    logging.disable(logging.WARNING)
    settings = load_settings(options.config)
    report = surroundings(torch.device("cpu")) | {
        "config": options.config,
        "input_size": settings.skeleton.input_size,
        "precision": settings.precision,
        "memory_gb": options.memory,
        "figures": [],
    }
    if not options.json:
        echo(f"{options.config}, {settings.skeleton.input_size}, {settings.precision}, {options.memory:g} GB")
        echo(f"{'case':20} {'cand.':>5} {'':10} {'one, GB':>9} {'fixed GB':>9} {'GB an image':>12} {'batch':>6}")
    for name, (skeleton, space) in cases(settings).items():
        if options.only not in name:
            continue
        for found in measure(name, skeleton, space, settings, options.memory):
            report["figures"].append(asdict(found))
            if not options.json:
                echo(
                    f"{found.case:20} {found.candidates:5} {found.implementation:10} {found.one_gb:9.2f} "
                    f"{found.fixed_gb:9.2f} {found.image_gb:12.2f} {found.largest:6}"
                )
    if options.json:
        echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
