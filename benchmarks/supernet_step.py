"""Time and memory of a search step: the fused mixed layer against NNI's, single layers and whole detector supernets.

A step is what first-order DARTS does with a pair of batches: forward and backward for the architecture parameters, then
forward and backward for the weights. NNI computes all gradients in both; ours those that the phase trains.

    python benchmarks/supernet_step.py             # layers and supernets: three quarters of an hour on one thread
    python benchmarks/supernet_step.py --quick     # a minute
    python benchmarks/supernet_step.py --json      # the figures for docs/benchmarks.md
    python benchmarks/supernet_step.py --json --device cuda --layers

On a GPU the layers have the paper's sizes; its supernets of that size are in full_size.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from measure import (
    Step,
    echo,
    interleaved,
    median_ratio,
    peak_bytes,
    surroundings,
)
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.strategy import DARTS
from single_layer import GPU_LAYERS, LAYERS, STOCK, Figures, measure_layer, shares

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import DataSettings
from hitdet_nni.config.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.model.searchable import ALPHA
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.fused import FUSED_MODES
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import OPERATORS

SKELETON = Skeleton(
    input_size=(128, 128),
    widths=(24, 48, 128, 176),
    depths=(2, 2, 4, 2),
    strides=(2, 2, 2, 2),
    tail=None,
    neck_width=128,
    head_width=128,
    head_fc=256,
    anchor_scale=4,
    proposals_train=200,
    proposals_test=100,
    roi_samples=32,
)
"""The paper's detector with half the channels and screening's depths, for images that a CPU can take."""

LARGE_IMAGES = 256
"""Side of the images of a second comparison, pixels: what shares become towards real sizes."""

DEFAULT_ACTIVATIONS = "fused-low"
"""What ``supernet.activations: auto`` chooses."""


def supernet_spaces() -> dict[str, dict[Component, tuple[str, ...]]]:
    """The supernets: the trinity of the published sub-spaces, each component screened, all screened at once."""
    published = load_search_space("hit_detector")
    fixed: dict[Component, tuple[str, ...]] = {
        "backbone": ("ir_k3_d1_e3",),
        "neck": ("sep_k3_d1",),
        "head": ("ir_k3_d1_e3",),
    }
    spaces = {"trinity": {component: tuple(published[component]) for component in COMPONENTS}}
    for component in COMPONENTS:
        spaces[f"screening {component}"] = {**fixed, component: OPERATORS}
    spaces["screening all"] = dict.fromkeys(COMPONENTS, OPERATORS)
    return spaces


@dataclass(frozen=True)
class SupernetCase:
    """A detector supernet to measure.

    Attributes:
        name: What it is.
        space: Operators of each component.
        side: Height and width of its images.
        modes: Modes to measure.
    """

    name: str
    space: Mapping[Component, tuple[str, ...]]
    side: int
    modes: Sequence[str]

    @property
    def skeleton(self) -> Skeleton:
        """:data:`SKELETON` for these images."""
        return SKELETON.model_copy(update={"input_size": (self.side, self.side)})


def supernet_cases(modes: Sequence[str]) -> list[SupernetCase]:
    """All supernets, on small images and on larger ones."""
    sides = (SKELETON.input_size[0], LARGE_IMAGES)
    spaces = supernet_spaces().items()
    return [SupernetCase(f"{name}, {side} px", space, side, modes) for side in sides for name, space in spaces]


def measure_supernet(case: SupernetCase, rounds: int, device: torch.device) -> list[Figures]:
    """Measure a whole detector supernet on the embedded digits with stock NNI and with the fused layer.

    Times are taken in turn in this process. Memory is that of a process of its own, as a search has it: what another
    supernet leaves in the allocator would be counted.
    """
    implementations = (STOCK, *case.modes)
    processes = multiprocessing.get_context("spawn")
    peaks: dict[str, int | None] = {}
    for implementation in implementations:
        with processes.Pool(1) as pool:
            peaks[implementation] = pool.apply(supernet_peak, (case, implementation, torch.get_num_threads(), device))
    steps = {implementation: supernet_step(case, implementation, device) for implementation in implementations}
    times = interleaved(steps, rounds, device)
    candidates = max(len(names) for names in case.space.values())
    return [
        Figures(
            case.name,
            candidates,
            implementation,
            statistics.median(times[implementation]),
            median_ratio(times, STOCK, implementation),
            None,
            None,
            *shares(peaks, implementation),
        )
        for implementation in implementations
    ]


def supernet_peak(case: SupernetCase, implementation: str, threads: int, device: torch.device) -> int | None:
    """Largest memory during a supernet's second step, over what is in use before it."""
    prepare_process(threads)
    step = supernet_step(case, implementation, device)
    step()
    return peak_bytes(step, device)


def supernet_step(case: SupernetCase, implementation: str, device: torch.device) -> Step:
    """A step of a freshly initialised supernet."""
    data_settings = DataSettings(builtin="digits", train=8, val=2, size=case.side, batch_size=2)
    data = open_data(data_settings, 0)
    weights_loader, alphas_loader, _ = search_loaders(data, data_settings, case.skeleton, 0)
    batches = [next(iter(loader)) for loader in (alphas_loader, weights_loader)]
    torch.manual_seed(0)
    model = HitDetectorSpace(case.skeleton, case.space, len(data.classes)).to(device)
    model.detector.data_preprocessor.to(device)
    if implementation == STOCK:
        DARTS().mutate_model(model)
    else:
        model.to(memory_format=torch.channels_last)
        ColumnSparseDARTS().mutate_model(model)
        set_activations(model, implementation)
    return _two_phases(model.train(), batches, phases=implementation != STOCK)


def _two_phases(model: HitDetectorSpace, batches: Sequence[Any], phases: bool) -> Step:
    layers = [m for m in model.modules() if isinstance(m, DifferentiableMixedLayer | ColumnSparseMixedLayer)]
    alphas = [getattr(layer, ALPHA) for layer in layers]
    architecture = {id(alpha) for alpha in alphas}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in architecture]

    def step() -> None:
        torch.manual_seed(1)  # the same proposals and RoIs for all
        for (trained, others), batch in zip(((alphas, weights), (weights, alphas)), batches, strict=True):
            for parameter in trained:
                parameter.requires_grad_()
            for parameter in others:
                parameter.requires_grad_(not phases)
            detection_loss(model.detector, copy.deepcopy(batch)).backward()
            for parameter in (*trained, *others):
                parameter.grad = None

    return step


HEADER = f"{'case':26} {'cand.':>5} {'':8} {'':4} {'s':>8} {'speed-up':>8} {'saved':>16} {'peak':>16} {'of GEMM':>8}"


def line(figures: Figures) -> str:
    """One row of the table."""

    def memory(megabytes: float | None, share: float | None) -> str:
        return "" if megabytes is None or share is None else f"{megabytes:8.0f} MB {share:.3f}"

    gemm = "" if figures.gemm_share is None else f"{figures.gemm_share:.2f}"
    return (
        f"{figures.case:26} {figures.candidates:5} {figures.implementation:8} {figures.precision} "
        f"{figures.seconds:8.3f} {figures.speedup:8.2f} {memory(figures.saved_mb, figures.saved_share):>16} "
        f"{memory(figures.peak_mb, figures.peak_share):>16} {gemm:>8}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="one small layer, one small supernet, one round")
    parser.add_argument("--layers", action="store_true", help="single layers only")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"), help="of layers (default: fp32)"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this, e.g. 'screening' or 'head'")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=list(FUSED_MODES),
        help="modes to measure (default: of a layer all, of a supernet the one that `auto` chooses)",
    )
    options = parser.parse_args()
    prepare_process(options.threads)
    device = torch.device(options.device)
    report = surroundings(device) | {"nni": version("nni"), "figures": []}
    if not options.json:
        echo(" | ".join(f"{key}: {value}" for key, value in report.items() if key != "figures"))
        echo(HEADER)

    def add(found: Sequence[Figures]) -> None:
        report["figures"] += [asdict(figures) for figures in found]
        if not options.json:
            for figures in found:
                echo(line(figures))

    rounds = 1 if options.quick else options.rounds
    published = load_search_space("hit_detector")
    layers = LAYERS if options.device == "cpu" else GPU_LAYERS
    for case in layers[:1] if options.quick else layers:
        if options.only in case.name:
            spaces = (published[case.component],) if options.quick else (OPERATORS, published[case.component])
            for names, precision in product(spaces, options.precision):
                add(measure_layer(case, names, options.modes or list(FUSED_MODES), rounds, device, precision))
    supernets = [] if options.layers else supernet_cases(options.modes or [DEFAULT_ACTIVATIONS])
    for supernet in supernets[: 1 if options.quick else None]:
        if options.only in supernet.name:
            add(measure_supernet(supernet, rounds, device))
    if options.json:
        echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
