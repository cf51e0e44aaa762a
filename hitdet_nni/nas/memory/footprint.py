"""Bytes that a mixed layer needs in a step: measured on small inputs, extrapolated to any, composed of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hitdet_nni.nas.memory.live_bytes import LiveBytes
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.recompute import WithoutTrace

ONE_BY_ONE = ("all", "checkpoint")
"""Activation modes in which a layer goes through its candidates one after the other; others are measured as a whole."""

SIDES = (4, 8)
"""Height and width of the two inputs that a footprint is measured on."""

Kind = tuple[Any, ...]
"""What the sizes of a candidate's activations depend on."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a part of the network in a step, beside its input, its parameters and their gradients.

    Attributes:
        held: Kept from the forward to the backward pass.
        forward: Most at one time in the forward pass, with output and what is held.
        backward: Most at one time in the backward pass, with the input's gradient and what is held.
    """

    held: int
    forward: int
    backward: int


def candidate_kind(candidate: nn.Module) -> Kind:
    """Return what the sizes of a candidate's activations depend on, beside its input.

    All convolutions here are padded to keep their size, so kernel and dilation have no part.
    """
    return tuple(
        (type(part), part.training, part.in_channels, part.out_channels, part.stride)
        if isinstance(part, nn.Conv2d)
        else (type(part), part.training, part.extra_repr())
        for part in candidate.modules()
    )


@dataclass(frozen=True)
class MeasuredFootprint:
    """What running a layer on small inputs tells about any input.

    Attributes:
        small: Footprint for an input of ``SIDES[0]`` rows and columns of one image.
        large: Footprint for ``SIDES[1]``.
        out_channels: Channels of the output.
        stride: Rows of the input per row of the output.
        dtype: Type of the output.
    """

    small: Footprint
    large: Footprint
    out_channels: int
    stride: int
    dtype: torch.dtype

    def footprint(self, places: int) -> Footprint:
        """Return the footprint for an input of so many places: images times rows times columns.

        Activations grow with the places, and what does not, e.g. 16-bit copies of weights, stays.
        """
        few, many = (side * side for side in SIDES)
        share = (places - few) / (many - few)
        held, forward, backward = (
            max(0, round(small + share * (large - small)))  # a single pixel lies far below both inputs
            for small, large in zip(astuple(self.small), astuple(self.large), strict=True)
        )
        return Footprint(held, forward, backward)

    def output_shape(self, input_shape: torch.Size) -> tuple[int, ...]:
        """Return the shape of the output for an input ``[N, C, H, W]``."""
        images, _, *sides = input_shape
        return (images, self.out_channels, *(-(-side // self.stride) for side in sides))


def measure(layer: ColumnSparseMixedLayer, names: Sequence[str], x: Tensor, dtype: torch.dtype) -> MeasuredFootprint:
    """Run a layer with some of its candidates forward and backward on small inputs. The layer stays as it was.

    Args:
        layer: A mixed layer.
        names: Candidates that are active.
        x: An input of the layer, ``[N, C, H, W]``; only its channels, type and need of a gradient matter.
        dtype: Type that the layer computes in.
    """
    active_names = layer.active_names
    layer.prune_to(names)
    try:
        (small, _), (large, output) = (_measure(layer, x, side, dtype) for side in SIDES)
    finally:
        layer.set_extra_state(active_names)
    return MeasuredFootprint(small, large, output.shape[1], SIDES[1] // output.shape[2], output.dtype)


def _measure(layer: ColumnSparseMixedLayer, like: Tensor, side: int, dtype: torch.dtype) -> tuple[Footprint, Tensor]:
    device = layer.alpha.device
    x = torch.ones(1, like.shape[1], side, side, dtype=like.dtype, device=device, requires_grad=like.requires_grad)
    active = nn.ModuleList(layer.active_candidates())
    parameters = [layer.alpha, *active.parameters()]
    trained = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
    with WithoutTrace(active), torch.enable_grad(), LiveBytes([x, *parameters, *active.buffers()]) as live:
        torch.clear_autocast_cache()  # 16-bit copies of weights are to be made here, and to be
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = layer(x)
        torch.clear_autocast_cache()  # forgotten unless backward needs them
        size = output.untyped_storage().nbytes()
        held, forward = live.now - size, live.peak
        with live.paused():
            gradient = torch.ones_like(output)
        live.forget_peak()
        gradients = torch.autograd.grad(output, trained, gradient, allow_unused=True)
        backward = live.peak - size
    of_parameters = sum(
        gradient.nbytes
        for tensor, gradient in zip(trained, gradients, strict=True)
        if tensor is not x and gradient is not None
    )
    return Footprint(held, forward, backward - of_parameters), output.detach()


def compose(candidates: Sequence[Footprint], input_size: int, sum_size: int) -> Footprint:
    """Return the footprint of a layer that adds its candidates one after the other.

    Backward goes through them in reverse, and adds their gradients of the input.

    Args:
        candidates: Footprints of the candidates alone, in their order.
        input_size: Bytes of the input's gradient.
        sum_size: Bytes of the running sum.
    """
    held, forward, backward = 0, 0, 0
    for index, candidate in enumerate(candidates):
        last = index == len(candidates) - 1
        forward = max(forward, held + candidate.forward + (sum_size if index else 0))
        backward = max(backward, held + candidate.backward + (0 if last else input_size))
        held += candidate.held
    return Footprint(held, max(forward, held + sum_size), backward)
