"""Bytes of fused layers on a GPU, whose programs work on whole maps and whose passes are recorded.

The passes run on tensors without data at their true sizes, where programs are not started: what they read and write has
been allocated before. No GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hitdet_nni.kernels.layout import channels_last
from hitdet_nni.nas.fused.backend import programs_are_used
from hitdet_nni.nas.fused.fixed import FusedBlock
from hitdet_nni.nas.fused.function import FusedMixture
from hitdet_nni.nas.fused.graph_memory import layout
from hitdet_nni.nas.fused.save_policy import FUSED_MODES, FusedMode
from hitdet_nni.nas.memory.footprint import Footprint
from hitdet_nni.nas.memory.live_bytes import LiveBytes
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.recompute import WithoutTrace

NO_DATA = torch.device("meta")

FusedLayer = ColumnSparseMixedLayer | FusedBlock


def layers_of_programs(module: nn.Module, device: torch.device) -> list[FusedLayer]:
    """Return the layers inside a network that Triton's programs compute on a device."""
    if device.type != "cuda" or not programs_are_used():
        return []
    return [
        part
        for part in module.modules()
        if isinstance(part, FusedBlock)
        or (isinstance(part, ColumnSparseMixedLayer) and part.activations in FUSED_MODES)
    ]


def forms_of_programs(module: nn.Module, device: torch.device) -> list[tuple[str, bool]]:
    """Return what :func:`layers_of_programs` keep for their gradients, and whether their passes are recorded now."""
    return [(layer.activations, mixture_of(layer).recordable) for layer in layers_of_programs(module, device)]


def mixture_of(layer: FusedLayer) -> FusedMixture:
    """Return a mixture of a layer's candidates that holds nothing."""
    modules: dict[str, nn.Module]
    if isinstance(layer, ColumnSparseMixedLayer):
        modules = dict(zip(layer.active_names, layer.active_candidates(), strict=True))
    else:
        modules = {"fixed": layer.replaced}
    return FusedMixture(modules, cast("FusedMode", layer.activations))


@dataclass(frozen=True)
class LayerPasses:
    """Bytes of a fused layer's passes for one input.

    Attributes:
        output_shape: ``[N, C, H, W]``.
        output_type: Its type.
        recorded: Whether the passes are recorded.
        inputs: Bytes of the input and the weights of the candidates.
        kept: Of what the backward pass needs besides.
        forward: Most at one time in the forward pass, beside the input, with the output and what is kept.
        backward: Most at one time in the backward pass, beside the input, the output's gradient and what is kept, with
            all gradients.
        of_parameters: Gradients of the parameters, as far as all are wanted.
        shared_forward: Bytes of what is copied out of the forward pass.
        shared_backward: Of what is copied into a backward pass and out of it, most of both phases'.
    """

    output_shape: tuple[int, ...]
    output_type: torch.dtype
    recorded: bool
    inputs: int
    kept: int
    forward: int
    backward: int
    of_parameters: int
    shared_forward: int
    shared_backward: int

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return math.prod(self.output_shape) * self.output_type.itemsize

    def footprint(self) -> Footprint:
        """Return what a step holds of the layer beside what is recorded, its input and gradients of parameters."""
        if self.recorded:
            return Footprint(held=0, forward=self.output_bytes, backward=0)
        return Footprint(self.kept, self.forward, self.kept + self.backward - self.of_parameters)


def count_passes(
    layer: FusedLayer, shape: Sequence[int], kind: torch.dtype, compute: torch.dtype, *, recorded: bool
) -> LayerPasses:
    """Run a layer's forward pass, and its backward pass as both phases of a step need it, on tensors without data.

    The layer stays as it was.

    Args:
        layer: From :func:`layers_of_programs`.
        shape: Of its input, ``[N, C, H, W]``.
        kind: Type of the input.
        compute: Type that the layer computes in.
        recorded: Whether its passes are recorded.
    """
    mixture = mixture_of(layer)
    units = mixture.units
    with torch.no_grad(), _no_data(layer, mixture):
        x = channels_last(torch.empty(*shape, dtype=kind, device=NO_DATA))
        parameters = [
            torch.empty(tensor.shape, dtype=tensor.dtype, device=NO_DATA)
            for unit in units
            for tensor in (unit.conv.weight, unit.norm.weight, unit.norm.bias)
        ]
        weights = torch.empty(len(mixture.candidates), device=NO_DATA)
        known = [x, weights, *parameters, *mixture.changed()]
        passes = mixture.passes(x, compute, mixture.policy)
        with LiveBytes(known) as live:
            output, tape = passes.forward(x, weights, parameters)
            forward = live.peak
        kept = list(tape.tensors.values())
        if recorded:
            lying = {name: torch.empty_like(tensor) for name, tensor in tape.tensors.items()}
            with LiveBytes([*known, *lying.values()]) as live:
                passes.forward(x, weights, parameters, lying)
                forward = live.peak
        grad = torch.empty_like(output)
        shared = backward = 0
        for phase in ((True, True, *(False for _ in parameters)), (True, False, *(True for _ in parameters))):
            with LiveBytes([*known, output, grad, *kept]) as live:
                gradients = passes.backward(tape, x, weights, parameters, phase, grad)
                backward = max(backward, live.peak)
            shared = max(shared, layout([grad, *(one for one in gradients if one is not None)])[1])
    return LayerPasses(
        output_shape=tuple(output.shape),
        output_type=output.dtype,
        recorded=recorded,
        inputs=x.nbytes + weights.nbytes,
        kept=sum(tensor.nbytes for tensor in kept),
        forward=forward,
        backward=backward,
        of_parameters=sum(parameter.nbytes for parameter in parameters),
        shared_forward=layout([output])[1],
        shared_backward=shared,
    )


@contextmanager
def _no_data(layer: FusedLayer, mixture: FusedMixture) -> Iterator[None]:
    """Let running averages be tensors without data within the context."""
    with WithoutTrace(layer):
        norms = [unit.norm for unit in mixture.units]
        before = [dict(norm._buffers) for norm in norms]
        try:
            for norm in norms:
                for name, buffer in norm._buffers.items():
                    if buffer is not None:
                        norm._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=NO_DATA)
            yield
        finally:
            for norm, buffers in zip(norms, before, strict=True):
                norm._buffers.update(buffers)


class GpuLayers:
    """The fused layers of a simulated step.

    Args:
        layers: From :func:`layers_of_programs`. Whether their passes are recorded depends on the
            processes that are there now.
        compute: Type that they compute in.
    """

    def __init__(self, layers: Iterable[FusedLayer], compute: torch.dtype) -> None:
        self.recordable = {layer: mixture_of(layer).recordable for layer in layers}
        self.compute = compute
        self._met: dict[tuple[nn.Module, torch.Size], LayerPasses] = {}
        self._counted: dict[Any, LayerPasses] = {}

    def passes(self, layer: FusedLayer, x: Tensor) -> LayerPasses:
        """Return a layer's passes for an input like ``x``, ``[N, C, H, W]``; equal layers are counted once."""
        if (layer, x.shape) not in self._met:
            recorded = self.recordable[layer]
            mixture = mixture_of(layer)
            form = (repr(mixture.modules), mixture.policy, x.shape, x.dtype, recorded)
            if form not in self._counted:
                with unset_fake_temporarily():
                    self._counted[form] = count_passes(layer, x.shape, x.dtype, self.compute, recorded=recorded)
            self._met[layer, x.shape] = self._counted[form]
        return self._met[layer, x.shape]

    def recorded_bytes(self) -> int:
        """Return what recorded passes hold between steps; those of smaller inputs use the same memory."""
        recorded = [passes for passes in self._met.values() if passes.recorded]
        own = sum(passes.inputs + passes.kept for passes in recorded)
        in_turn = [passes.shared_forward for passes in recorded] + [passes.shared_backward for passes in recorded[::-1]]
        shared = sum(set(accumulate(in_turn, max)))  # where more is needed, those recorded before keep what they have
        on_the_way = max((max(passes.forward, passes.backward) for passes in recorded), default=0)
        return own + shared + on_the_way
