"""One mixed layer by the means that others use to make a supernet affordable, beside the fused layer and NNI's.

Checkpointing and ``torch.compile`` compute the same sum as NNI. Two paths (ProxylessNAS) and partial channels
(PC-DARTS) compute another, cheaper one: their figures say what the approximation buys.

    python benchmarks/peers.py             # the head's layer with eight candidates
    python benchmarks/peers.py --compile   # torch.compile too
    python benchmarks/peers.py --json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from measure import echo, interleaved, median_ratio, peak_bytes, saved_bytes, surroundings
from single_layer import GPU_LAYERS, LAYERS, STOCK, LayerCase, layer_modules, layer_step, stock_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.nas.fused import FusedMixture
from hitdet_nni.operators.registry import OPERATORS

PARTIAL_CHANNELS = 4
"""PC-DARTS' K: one channel in so many goes through the candidates (Xu et al., ICLR 2020, section 4.1)."""


@dataclass(frozen=True)
class Peer:
    """A way to compute a mixed layer.

    Attributes:
        forward: The layer.
        modules: Its candidates.
        exact: Whether it is the weighted sum of all candidates.
    """

    forward: Callable[[Tensor], Tensor]
    modules: nn.Module
    exact: bool


def checkpointed(modules: nn.ModuleDict, alpha: nn.Parameter) -> Callable[[Tensor], Tensor]:
    """The plain sum, each candidate computed again in backward."""

    def forward(x: Tensor) -> Tensor:
        terms = (
            weight * checkpoint(module, x, use_reentrant=False)
            for weight, module in zip(alpha.softmax(-1), modules.values(), strict=True)
        )
        return sum(terms)  # type: ignore[return-value]

    return forward


def two_paths(modules: nn.ModuleDict, alpha: nn.Parameter) -> Callable[[Tensor], Tensor]:
    """ProxylessNAS' architecture step: two candidates drawn by their weights, which are rescaled to sum to one.

    Source:
        Cai et al., ICLR 2019, section 3.2.2.
    """
    generator = torch.Generator().manual_seed(0)
    candidates = list(modules.values())

    def forward(x: Tensor) -> Tensor:
        drawn = torch.multinomial(alpha.detach().softmax(-1).cpu(), 2, generator=generator)
        weights = alpha[drawn.to(alpha.device)].softmax(-1)
        first, second = (candidates[index](x) for index in drawn.tolist())
        result: Tensor = weights[0] * first + weights[1] * second
        return result

    return forward


def partial_channels(modules: nn.ModuleDict, alpha: nn.Parameter) -> Callable[[Tensor], Tensor]:
    """PC-DARTS: a quarter of the channels goes through the candidates, the rest around them, then all are shuffled."""

    def forward(x: Tensor) -> Tensor:
        inside = x.shape[1] // PARTIAL_CHANNELS
        mixed = sum(w * m(x[:, :inside]) for w, m in zip(alpha.softmax(-1), modules.values(), strict=True))
        both = torch.cat((mixed, x[:, inside:]), 1)  # type: ignore[arg-type]
        shuffled = both.view(len(x), PARTIAL_CHANNELS, inside, *x.shape[2:]).transpose(1, 2)
        return shuffled.reshape(x.shape)

    return forward


def peers(
    case: LayerCase, names: Sequence[str], alpha: nn.Parameter, device: torch.device, *, compiled: bool
) -> dict[str, Peer]:
    """All ways, NNI's first; with ``compiled`` also NNI's layer through ``torch.compile``."""
    reference = layer_modules(names, case.channels).to(device)
    stock = stock_layer(reference, alpha)
    quarter = layer_modules(names, case.channels // PARTIAL_CHANNELS).to(device)
    fused = copy.deepcopy(reference)
    found = {
        STOCK: Peer(stock, reference, exact=True),
        "checkpoint": Peer(checkpointed(reference, alpha), reference, exact=True),
        "two paths": Peer(two_paths(reference, alpha), reference, exact=False),
        "partial channels": Peer(partial_channels(quarter, alpha), quarter, exact=False),
    }
    if compiled:
        found["compile"] = Peer(torch.compile(stock), reference, exact=True)
    for activations in ("fused", "fused-low"):
        mixture = FusedMixture(dict(fused.items()), activations)  # type: ignore[arg-type]
        found[activations] = Peer(lambda x, m=mixture: m(x, alpha.softmax(-1)), fused, exact=True)  # type: ignore[misc]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--case", default="head", choices=[case.name for case in LAYERS])
    parser.add_argument("--all-operators", action="store_true", help="all 32 operators, not the published eight")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: needs a C++ compiler and minutes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    options = parser.parse_args()
    prepare_process(options.threads)
    device = torch.device(options.device)
    layers = LAYERS if options.device == "cpu" else GPU_LAYERS
    case = next(case for case in layers if case.name == options.case)
    names = OPERATORS if options.all_operators else load_search_space("hit_detector")[case.component]
    alpha = nn.Parameter(torch.zeros(len(names), device=device))
    found = peers(case, names, alpha, device, compiled=options.compile)
    shape = (case.count, case.channels, case.height, case.width)
    x, grad = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
    steps = {
        name: layer_step(peer.forward, x, grad, peer.modules, alpha, phases=name.startswith("fused"))
        for name, peer in found.items()
    }
    times = interleaved(steps, options.rounds, device)
    rows = []
    for name, peer in found.items():
        peer.modules.requires_grad_()
        alpha.requires_grad_()
        known = [*peer.modules.parameters(), *peer.modules.buffers(), alpha]
        rows.append(
            {
                "implementation": name,
                "exact": peer.exact,
                "seconds": statistics.median(times[name]),
                "speedup": median_ratio(times, STOCK, name),
                "saved_mb": saved_bytes(lambda peer=peer: peer.forward(x), known) / 1e6,  # type: ignore[misc]
                "peak_mb": None if (peak := peak_bytes(steps[name], device)) is None else peak / 1e6,
            }
        )
    report = surroundings(device) | {"nni": version("nni"), "case": asdict(case), "candidates": len(names)}
    if options.json:
        echo(json.dumps(report | {"figures": rows}, indent=1))
        return
    echo(" | ".join(f"{key}: {value}" for key, value in report.items()))
    for row in rows:
        echo("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else str(value) for key, value in row.items()))


if __name__ == "__main__":
    main()
