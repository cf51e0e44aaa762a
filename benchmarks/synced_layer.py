"""Single mixed layers in several processes that share the statistics of batch normalisation: fused, and NNI's.

A step takes as long as in the slowest process. NNI's layer has this project's synced batch normalisation, as torch's
own counts every process alike only on GPUs; there it is measured too.

    torchrun --nproc-per-node 2 benchmarks/synced_layer.py            # on GPUs, where there are as many
    torchrun --nproc-per-node 2 benchmarks/synced_layer.py --json
    torchrun --nproc-per-node 2 benchmarks/synced_layer.py --quick    # small layers
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from measure import Step, echo, median_ratio, surroundings
from single_layer import GPU_LAYERS, LAYERS, STOCK, LayerCase, layer_modules, layer_step, stock_layer
from torch import Tensor, nn

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.nas.fused import FUSED_MODES, FusedMixture
from hitdet_nni.nas.step_timing import wall_clock
from hitdet_nni.operators.registry import OPERATORS

TORCH = "stock, torch's SyncBatchNorm"


@dataclass(frozen=True)
class SyncedFigures:
    """What was measured of one implementation.

    Attributes:
        case: The layer.
        candidates: How many it has.
        implementation: ``stock``, that with torch's normalisation, or an activation mode.
        seconds: Median time of a step of both phases, in the slowest process.
        speedup: Median over the rounds of stock's time over this one's.
        exchanges: How often a step speaks to the other processes; ``None`` for torch's normalisation.
    """

    case: str
    candidates: int
    implementation: str
    seconds: float
    speedup: float
    exchanges: int | None


@contextmanager
def counted() -> Iterator[list[str]]:
    """Note the exchanges within the context by their names."""
    made: list[str] = []
    names = ("sum_in_place", "gather_tensor")
    before = {name: getattr(distributed, name) for name in names}

    def noted(name: str, *arguments: Tensor) -> Any:
        made.append(name)
        return before[name](*arguments)

    try:
        for name in names:
            setattr(distributed, name, lambda *arguments, name=name: noted(name, *arguments))
        yield made
    finally:
        for name in names:
            setattr(distributed, name, before[name])


def layer_steps(case: LayerCase, names: Sequence[str], device: torch.device) -> Mapping[str, Step]:
    """A step of both phases in each implementation; each process has maps of its own."""
    reference = layer_modules(names, case.channels).to(device)
    alpha = nn.Parameter(torch.zeros(len(names), device=device))
    torch.manual_seed(distributed.rank())
    x, grad = (torch.randn(case.count, case.channels, case.height, case.width, device=device) for _ in range(2))
    x.requires_grad_()
    last, grad_last = (one.detach().to(memory_format=torch.channels_last) for one in (x, grad))
    last.requires_grad_()

    def synced(modules: nn.ModuleDict) -> nn.ModuleDict:
        apply_batch_norm(modules, "synced")
        return modules

    plain, fused = (synced(copy.deepcopy(reference)) for _ in range(2))
    steps = {STOCK: layer_step(stock_layer(plain, alpha), x, grad, plain, alpha, phases=False)}
    if device.type == "cuda":
        torchs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(reference))
        steps[TORCH] = layer_step(stock_layer(torchs, alpha), x, grad, torchs, alpha, phases=False)
    for mode in FUSED_MODES:
        mixture = FusedMixture(dict(fused.items()), mode)

        def forward(x: Tensor, mixture: FusedMixture = mixture) -> Tensor:
            return mixture(x, alpha.softmax(-1))

        steps[mode] = layer_step(forward, last, grad_last, fused, alpha, phases=True)
    return steps


def measure(case: LayerCase, names: Sequence[str], rounds: int, device: torch.device) -> list[SyncedFigures]:
    """Measure one layer; all implementations in turn in each round, after one that does not count."""
    steps = layer_steps(case, names, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    exchanges: dict[str, int] = {}
    for number in range(-1, rounds):
        for name, step in steps.items():
            distributed.barrier()
            with counted() as made:
                spent = max(distributed.gather(wall_clock(step, device)))
            exchanges[name] = len(made)
            if number >= 0:
                times[name].append(spent)
    return [
        SyncedFigures(
            case.name,
            len(names),
            name,
            statistics.median(times[name]),
            median_ratio(times, STOCK, name),
            None if name == TORCH else exchanges[name],
        )
        for name in steps
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="small layers of eight candidates")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: 3)")
    options = parser.parse_args()
    prepare_process(1)
    distributed.init()
    if distributed.world_size() == 1:
        parser.error("one process shares nothing: start it by torchrun --nproc-per-node 2")
    device = distributed.device()
    figures = []
    for case in LAYERS if device.type == "cpu" else GPU_LAYERS:
        published = load_search_space("hit_detector")[case.component]
        small = replace(case, count=min(case.count, 4), height=8, width=8)
        for names in (published,) if options.quick else (OPERATORS, published):
            figures += measure(small if options.quick else case, names, options.rounds, device)
    if distributed.is_main():
        report = surroundings(device) | {
            "nni": version("nni"), "clock": "wall", "processes": distributed.world_size(),
        }  # fmt: skip
        rows = [asdict(one) for one in figures]
        if options.json:
            echo(json.dumps(report | {"figures": rows}, indent=1))
        else:
            echo(" | ".join(f"{key}: {value}" for key, value in report.items()))
            for row in rows:
                echo("  ".join(f"{key} {value}" for key, value in row.items()))
    distributed.destroy()


if __name__ == "__main__":
    main()
