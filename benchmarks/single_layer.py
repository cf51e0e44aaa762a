"""Time and memory of single mixed layers: the fused layer against NNI's."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from measure import (
    Step,
    clear_gradients,
    gemm_flops,
    interleaved,
    median_ratio,
    saved_bytes,
    settled_peak_bytes,
)
from nni.mutable import frozen_context
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Component
from hitdet_nni.engine.precision import Precision, PrecisionKind
from hitdet_nni.nas.fused import FusedMixture
from hitdet_nni.operators.registry import build_operator

STOCK = "stock"
PASSES = 5
"""Passes of a step that cannot be left out, each as costly as a forward pass: two forward, two for the gradient by the
input, one for that by the weights."""


@dataclass(frozen=True)
class LayerCase:
    """A mixed layer to measure.

    Attributes:
        name: Where such a layer stands.
        count: Maps in a batch.
        channels: Channels of input and output.
        height: Rows.
        width: Columns.
        component: Whose published sub-space the eight candidates are.
    """

    name: str
    count: int
    channels: int
    height: int
    width: int
    component: Component


LAYERS = (
    LayerCase("backbone", 2, 96, 40, 40, "backbone"),
    LayerCase("neck", 2, 256, 40, 40, "neck"),
    LayerCase("head", 128, 256, 7, 7, "head"),
)
GPU_LAYERS = (
    LayerCase("backbone", 4, 96, 100, 152, "backbone"),
    LayerCase("neck", 4, 256, 50, 76, "neck"),
    LayerCase("head", 2048, 256, 7, 7, "head"),
)
"""The paper's sizes: four images of 800 x 1216, 512 RoIs each."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one implementation.

    Attributes:
        case: The layer or supernet.
        candidates: Candidates of a searched layer.
        implementation: ``stock`` or an activation mode.
        seconds: Median time of a step.
        speedup: Median over the rounds of stock's time over this one's.
        saved_mb: Memory kept between forward and backward, in MB; layers only.
        saved_share: The same over stock's.
        peak_mb: Largest memory during a step over idle, in MB.
        peak_share: The same over stock's.
        gemm_share: FLOP/s of the passes that a step needs, over those of a product of matrices; layers only.
        precision: Type of the activations.
    """

    case: str
    candidates: int
    implementation: str
    seconds: float
    speedup: float
    saved_mb: float | None = None
    saved_share: float | None = None
    peak_mb: float | None = None
    peak_share: float | None = None
    gemm_share: float | None = None
    precision: PrecisionKind = "fp32"


def layer_modules(names: Sequence[str], channels: int) -> nn.ModuleDict:
    """The candidates of a layer, initialised."""
    torch.manual_seed(0)
    return nn.ModuleDict({name: build_operator(name, channels, channels, 1) for name in names})


def stock_layer(modules: nn.ModuleDict, alpha: nn.Parameter) -> nn.Module:
    """NNI's mixed layer of the candidates."""
    names = list(modules)
    with frozen_context({"layer": names[0]}):
        layer: nn.Module = DifferentiableMixedLayer(dict(modules.items()), alpha, nn.Softmax(-1), "layer")
    return layer


def layer_step(
    forward: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, modules: nn.Module, alpha: nn.Parameter, phases: bool
) -> Step:
    """The two phases of a step for one layer.

    Args:
        forward: The layer.
        x: Its input.
        grad: Gradient by its output.
        modules: The candidates.
        alpha: The architecture parameters.
        phases: Whether each phase computes the gradients that it trains only.
    """

    def step() -> None:
        for of_alphas in (True, False):
            modules.requires_grad_(not (phases and of_alphas))
            alpha.requires_grad_(of_alphas or not phases)
            x.grad = alpha.grad = None
            output = forward(x)
            output.backward(grad.to(output.dtype))
            clear_gradients(modules)

    return step


def measure_layer(
    case: LayerCase,
    names: Sequence[str],
    modes: Sequence[str],
    rounds: int,
    device: torch.device,
    precision: PrecisionKind = "fp32",
) -> list[Figures]:
    """Measure one layer with stock NNI and with the fused layer.

    Args:
        case: The layer.
        names: Its candidates.
        modes: Modes of the fused layer.
        rounds: Rounds that count.
        device: Where it computes.
        precision: Type of the activations, the layer's input among them; parameters have 32 bits.
    """
    cast = Precision(precision, device)
    reference = layer_modules(names, case.channels).to(device)
    fused = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    alpha = nn.Parameter(torch.zeros(len(names), device=device))
    shape = (case.count, case.channels, case.height, case.width)
    x, grad = (torch.randn(shape, device=device).to(cast.dtype) for _ in range(2))
    x_last, grad_last = (tensor.to(memory_format=torch.channels_last) for tensor in (x, grad))
    stock = stock_layer(reference, alpha)
    forwards: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module, Tensor, Tensor]] = {
        STOCK: (_in_precision(stock, cast), reference, x.requires_grad_(), grad)
    }

    def fuse(activations: str) -> Callable[[Tensor], Tensor]:
        mixture = FusedMixture(dict(fused.items()), activations)  # type: ignore[arg-type]
        return _in_precision(_weighted(mixture, alpha), cast)

    def step_of(name: str) -> Step:
        forward, modules, given, grad_output = forwards[name]
        return layer_step(forward, given, grad_output, modules, alpha, phases=name != STOCK)

    # Pairs, so that no more than one of ours holds what its recorded passes keep.
    times: dict[str, list[float]] = {STOCK: []}
    ratios: dict[str, float] = {STOCK: 1.0}
    kept, peaks = {}, {}
    for name in (STOCK, *modes):
        if name != STOCK:
            forwards[name] = (fuse(name), fused, x_last.requires_grad_(), grad_last)
        forward, modules, given, _ = forwards[name]
        modules.requires_grad_()
        alpha.requires_grad_()
        known = [*modules.parameters(), *modules.buffers(), alpha]
        kept[name] = saved_bytes(lambda forward=forward, given=given: forward(given), known)  # type: ignore[misc]
        peaks[name] = settled_peak_bytes(step_of(name), device)
        if name != STOCK:
            pair = interleaved({STOCK: step_of(STOCK), name: step_of(name)}, rounds, device)
            ratios[name] = median_ratio(pair, STOCK, name)
            times[name] = pair[name]
            times[STOCK] += pair[STOCK]
            del forward, forwards[name]
    flops = (
        PASSES
        * 2
        * case.count
        * case.height
        * case.width
        * sum(module.weight.numel() for module in fused.modules() if isinstance(module, nn.Conv2d))
    )
    peak_flops = gemm_flops(device, cast.dtype)
    return [
        Figures(
            case.name,
            len(names),
            name,
            statistics.median(times[name]),
            ratios[name],
            kept[name] / 1e6,
            kept[name] / kept[STOCK],
            *shares(peaks, name),
            flops / statistics.median(times[name]) / peak_flops,
            precision,
        )
        for name in (STOCK, *modes)
    ]


def _in_precision(forward: Callable[[Tensor], Tensor], precision: Precision) -> Callable[[Tensor], Tensor]:
    def in_precision(x: Tensor) -> Tensor:
        with precision.autocast():
            return forward(x)

    return in_precision


def _weighted(mixture: FusedMixture, alpha: nn.Parameter) -> Callable[[Tensor], Tensor]:
    return lambda x: mixture(x, alpha.softmax(-1))


def shares(peaks: Mapping[str, int | None], name: str) -> tuple[float | None, float | None]:
    """A peak in MB and its share of stock's; ``None`` where the system cannot say."""
    peak, stock = peaks[name], peaks[STOCK]
    return (None, None) if peak is None or stock is None else (peak / 1e6, peak / stock)
