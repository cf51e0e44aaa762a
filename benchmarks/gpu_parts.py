"""What gpu.sh measures with torch: layers and whole supernets, ours against NNI's, and what a step of ours consists of.

Each part writes its figures after every case, so that what has been measured is there when the clock ends it.

    python benchmarks/gpu_parts.py layers --out layers.json
    python benchmarks/gpu_parts.py supernets --out supernets.json --device cpu --toy
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from full_size import CLASSES, STOCK, Trainer
from gpu_cases import case_name
from gpu_profile import describe_profile, profile_step
from gpu_sizes import largest, step_once, warm
from gpu_steps import (
    PRECISIONS,
    TOY_OPERATORS,
    Case,
    Options,
    Way,
    measure_ways,
    release,
    short,
    supernet_cases,
    supernet_plan,
)
from measure import (
    echo,
    gemm_flops,
    median_ratio,
)
from single_layer import GPU_LAYERS, PASSES, LayerCase, measure_layer
from supernet_step import HEADER, line

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.engine.precision import DTYPES, PrecisionKind
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.activation_choice import choose_modes, component_options
from hitdet_nni.nas.fused import FUSED_MODES
from hitdet_nni.nas.step_timing import StepTimer
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import OPERATORS

TOY_LAYERS = (LayerCase("backbone", 1, 8, 8, 8, "backbone"),)


@dataclass(frozen=True)
class SupernetFigures:
    """What was measured of one way to compute a supernet.

    Attributes:
        case: The supernet.
        candidates: Operators of a searched layer.
        implementation: ``"NNI"`` or a value of ``supernet.activations``.
        precision: Type of the activations.
        batch: Images of each phase of a step.
        seconds: A step of both phases with their updates, median; ``None`` where it needs more memory than there is.
        speedup: Median over the rounds of NNI's time over this one's; ``None`` where one of them did not run.
        peak_gb: Largest memory of a step over parameters, buffers and optimisers' states, GB.
        peak_share: The same over NNI's.
        gemm_share: FLOP/s of the passes that a step needs, over those of a large product of matrices in ``precision``.
    """

    case: str
    candidates: int
    implementation: str
    precision: PrecisionKind
    batch: int
    seconds: float | None
    speedup: float | None
    peak_gb: float | None
    peak_share: float | None
    gemm_share: float | None


def layers(options: Options) -> None:
    """Single mixed layers: ours in every mode against NNI's, interleaved."""
    published = load_search_space("hit_detector")
    plan = [
        (case, tuple(names[:TOY_OPERATORS] if options.toy else names), precision)
        for case in (TOY_LAYERS if options.toy else GPU_LAYERS)
        for names in (OPERATORS, published[case.component])[: 1 if options.toy else None]
        for precision in PRECISIONS
    ]
    plan.sort(key=lambda case: PRECISIONS.index(case[2]))  # all of single precision first
    named = [
        (case_name("layers", case=case.name, candidates=len(names), precision=precision), case, names, precision)
        for case, names, precision in plan
    ]
    named = [case for case in named if options.chosen(case[0])]
    figures: list[dict[str, Any]] = []
    echo(HEADER)
    for index, (_, case, names, precision) in enumerate(named):
        if not options.time_left:
            break
        rounds = 1 if options.toy else 3
        found = measure_layer(case, names, list(FUSED_MODES), rounds, options.device, precision)
        for row in found:
            echo(line(row))
        figures += [asdict(row) for row in found]
        release(options.device)
        options.write(figures, [name for name, *_ in named[index + 1 :]])


def forward_flops(case: Case) -> float:
    """Multiply-adds of a forward pass of one image through all candidates."""
    skeleton, space = case
    costs = CostModel(skeleton, CLASSES, proposals=skeleton.roi_samples)
    searched = sum(costs.layer_cost(layer, name).flops for layer in costs.layers for name in space[layer.component])
    return searched + sum(layer.cost.flops for layer in costs.fixed)


def supernets(options: Options) -> None:
    """Whole supernets: ours against NNI's, one after the other in one process, each with its peak memory."""
    available = supernet_cases(options.toy)
    named = [
        (case_name("supernets", case=name, precision=precision, batch=batch), name, precision, batch)
        for name, precision, batch in supernet_plan(options.toy)
    ]
    plan = [case for case in named if options.chosen(case[0])]
    implementations = (STOCK, "fused-low") if options.toy else (STOCK, "fused", "fused-low")
    gemms = {precision: gemm_flops(options.device, DTYPES[precision]) for precision in PRECISIONS}
    figures: list[dict[str, Any]] = []
    for index, (_, name, precision, batch) in enumerate(plan):
        if not options.time_left:
            break
        case = available[name]
        ways = {name: name for name in implementations}
        rounds = 1 if options.toy else 3
        times, peaks = measure_ways(case, ways, precision, batch, rounds, options.device)
        passes = 2 * PASSES * forward_flops(case) * batch / gemms[precision]
        for implementation in implementations:
            ran, both = implementation in times, {STOCK, implementation} <= times.keys()
            peak, stock = peaks.get(implementation), peaks.get(STOCK)
            spent = statistics.median(times[implementation]) if ran else None
            row = SupernetFigures(
                name,
                max(len(names) for names in case[1].values()),
                implementation,
                precision,
                batch,
                spent,
                median_ratio(times, STOCK, implementation) if both else None,
                None if peak is None else peak / 1e9,
                None if peak is None or stock is None else peak / stock,
                None if spent is None else passes / spent,
            )
            echo(" ".join(f"{key} {short(value)}" for key, value in asdict(row).items()))
            figures.append(asdict(row))
        more = {"config": "tiny" if options.toy else "coco_paper", "input_size": case[0].input_size}
        options.write(figures, [name for name, *_ in plan[index + 1 :]], gemm_flops=gemms, **more)


@dataclass(frozen=True)
class RandomLoader:
    """Random images in the form in which a search's loader gives its first batch.

    Attributes:
        trainer: Makes them.
        batch_size: Images of a batch.
        seed: Which ones.
    """

    trainer: Trainer
    batch_size: int
    seed: int

    @property
    def sampler(self) -> Sequence[int]:
        """One image after the other."""
        return range(self.batch_size)

    @property
    def dataset(self) -> Sequence[int]:
        """The images, which are made when they are collated."""
        return range(self.batch_size)

    def collate_fn(self, draws: Sequence[int]) -> dict[str, Any]:
        """A batch."""
        return self.trainer.batch(len(draws), self.seed)


def automatic(options: Options) -> None:
    """What ``supernet.activations: auto`` chooses, what the choice takes, and a step with it against NNI's."""
    available = supernet_cases(options.toy)
    plan: list[tuple[str, PrecisionKind]] = [("trinity", "fp32"), ("screening head", "fp32"), ("trinity", "bf16")]
    named = [(case_name("auto", case=name, precision=precision), name, precision) for name, precision in plan]
    named = [case for case in named[: 1 if options.toy else None] if options.chosen(case[0])]
    batch = 1
    figures: list[dict[str, Any]] = []
    for index, (_, name, precision) in enumerate(named):
        if not options.time_left:
            break
        case = available[name]
        space = HitDetectorSpace(*case, CLASSES)  # type: ignore[arg-type]
        ColumnSparseDARTS().mutate_model(space.to(memory_format=torch.channels_last))
        settings = load_settings(
            "tiny" if options.toy else "coco_paper", {"precision": precision, "data.batch_size": batch}
        )
        release(options.device)
        trainer = Trainer(*case, "fused-low", precision, options.device)
        loaders = tuple(RandomLoader(trainer, batch, seed) for seed in (0, 1))
        started = time.perf_counter()
        with StepTimer(space, settings, case[0], loaders, options.device) as timer:  # type: ignore[arg-type]
            choice = choose_modes(component_options(space), timer, timer.available)
        spent = time.perf_counter() - started
        del space, trainer, timer, loaders
        echo(f"{name}, {precision}: chosen in {spent:.0f} s: {choice.sentence()}")
        rounds = 1 if options.toy else 3
        ways: dict[str, Way] = {STOCK: STOCK, "auto": choice.modes}
        times, peaks = measure_ways(case, ways, precision, batch, rounds, options.device)
        both = len(times) == len(ways)
        row = {"case": name, "precision": precision, "batch": batch, "modes": choice.modes, "choice_s": spent}
        row |= {"tried": choice.tried, "stock_s": statistics.median(times[STOCK]) if STOCK in times else None}
        row |= {"seconds": statistics.median(times["auto"]) if "auto" in times else None}
        row |= {"speedup": median_ratio(times, STOCK, "auto") if both else None, "peaks": peaks}
        echo(f"{name}, {precision}: NNI {short(row['stock_s'])} s, auto {short(row['seconds'])} s a step")
        figures.append(row)
        options.write(figures, [name for name, *_ in named[index + 1 :]])


def profiles(options: Options) -> None:
    """Kernels of a step by time, and for what part of the step the device computes."""
    available = supernet_cases(options.toy)
    plan: list[tuple[str, PrecisionKind, str]] = [("trinity", "fp32", "fused-low")]
    if not options.toy:
        plan = [
            (name, precision, mode)
            for name in ("trinity", "screening backbone")
            for precision in PRECISIONS
            for mode in ("fused-low", "fused")
        ]
    named = [
        (case_name("profile", case=name, precision=precision, implementation=mode), name, precision, mode)
        for name, precision, mode in plan
    ]
    named = [case for case in named if options.chosen(case[0])]
    figures: list[dict[str, Any]] = []
    for index, (_, name, precision, mode) in enumerate(named):
        if not options.time_left:
            break
        release(options.device)
        trainer = Trainer(*available[name], mode, precision, options.device)
        batch = trainer.batch(1, 1)
        for _ in range(1 if options.toy else 3):
            trainer.step(batch)
        row = {"case": name, "precision": precision, "implementation": mode, "batch": 1}
        row |= profile_step(lambda trainer=trainer, batch=batch: trainer.step(batch), options.device)  # type: ignore[misc]
        figures.append(row)
        echo(describe_profile(row))
        options.write(figures, [name for name, *_ in named[index + 1 :]])
        del trainer


PARTS: Mapping[str, Callable[[Options], None]] = {
    "warm": warm,
    "layers": layers,
    "supernets": supernets,
    "auto": automatic,
    "profile": profiles,
    "largest": largest,
}


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "step"])
    parser.add_argument("--out", type=Path, required=True, help="file for the figures (JSON)")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--until", type=float, default=math.inf, help="no case is begun after this time (Unix time)")
    parser.add_argument("--cases", default="", help="pattern of the cases to measure (default: all)")
    parser.add_argument("--case", default="trinity", help="supernet of the part step")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the part step")
    given = parser.parse_args()
    prepare_process(1)
    logging.disable(logging.INFO)
    options = Options(torch.device(given.device), given.toy, given.until, given.out, given.cases)
    logging.getLogger("hitdet_nni").addHandler(options.warnings)
    if given.part == "step":
        step_once(options, given.case, given.precision)
    else:
        PARTS[given.part](options)


if __name__ == "__main__":
    main()
