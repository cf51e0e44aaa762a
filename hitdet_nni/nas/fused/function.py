"""The fused mixed layer: the weighted sum of all candidates and its gradient as one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hitdet_nni.engine.joint_statistics import statistics_type
from hitdet_nni.errors import InputError
from hitdet_nni.kernels.layout import MapShape, channels_last
from hitdet_nni.model.level_norm import LevelBatchNorm2d
from hitdet_nni.nas.fused.backend import computed_on_cpu, on_device_of, rounding_of_convolutions, uses_triton
from hitdet_nni.nas.fused.graph_memory import Token
from hitdet_nni.nas.fused.joint import JointPixels, are_joint
from hitdet_nni.nas.fused.mixture_passes import MixturePasses
from hitdet_nni.nas.fused.plan import (
    Plan,
    make_plan,
    normalization_modes,
    stride_of,
    units,
)
from hitdet_nni.nas.fused.reading import read_candidates
from hitdet_nni.nas.fused.recording import Outputs, Recording, Recordings
from hitdet_nni.nas.fused.save_policy import FUSED_MODES, NOTHING, FusedMode, SavePolicy, Tape

PLANS = 64
"""Plans kept by a mixture; one is needed for each number of pixels."""

GIVEN = 4
"""Arguments of the autograd function before its tensors."""


class FusedMixture:
    """The weighted sum of candidate operators of one layer, computed as one operation.

    Equal to ``sum(weight * module(x))`` in outputs, gradients and running statistics but for rounding. The candidates'
    modules are read, never called: their hooks do not run. The gradient cannot be differentiated again.

    Args:
        modules: The candidates by name, blocks of families that have a reader, all for one input and output shape.
        activations: What is kept for the gradient, one of :data:`~hitdet_nni.nas.fused.save_policy.FUSED_MODES`.

    Raises:
        InputError: If a candidate or its batch normalisation is of another kind, or the mode is unknown.
    """

    def __init__(self, modules: Mapping[str, nn.Module], activations: FusedMode = "fused-low") -> None:
        if activations not in FUSED_MODES:
            raise InputError(
                f"unknown activation mode {activations!r}", key="supernet.activations", allowed=FUSED_MODES
            )
        self.policy = FUSED_MODES[activations]
        self.modules = dict(modules)
        self._read()

    def _read(self) -> None:
        self.candidates = read_candidates(self.modules)
        self.units = units(self.candidates)
        self.stride = stride_of(self.candidates)
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._recordings = Recordings()
        norms = [unit.norm for unit in self.units]
        self._recordable = all(norm.momentum is not None and not isinstance(norm, LevelBatchNorm2d) for norm in norms)

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the candidates' outputs.

        Args:
            x: ``[N, C, H, W]`` in any memory order.
            weights: One number a candidate, in the order of the modules.

        Returns:
            ``[N, C_out, ceil(H / stride), ceil(W / stride)]`` in channels-last order; under autocast of its type.
        """
        if any(unit.stale for unit in self.units):
            self._read()
        compute = _compute_type(x)
        joint = self._joint_pixels(x, compute)
        if (x.numel() if joint is None else joint.least) == 0:
            return self._one_by_one(x, weights)
        parameters = [p for unit in self.units for p in (unit.conv.weight, unit.norm.weight, unit.norm.bias)]
        wanted = torch.is_grad_enabled()  # within the function it never is
        result: Tensor = _WeightedSum.apply(self, compute, wanted, joint, x, weights, *parameters)
        return result

    def _joint_pixels(self, x: Tensor, compute: torch.dtype) -> JointPixels | None:
        """Return the pixels of all processes for an input ``[N, C, H, W]``; ``None`` where they share no statistics."""
        if not are_joint([unit.norm for unit in self.units]):
            return None
        shape = self.shape_of(x)
        return JointPixels.of(shape.pixels, shape.strided(self.stride).pixels, statistics_type(compute), x.device)

    def _one_by_one(self, x: Tensor, weights: Tensor) -> Tensor:
        """Do as :meth:`__call__` does by the candidates' modules, which know what becomes of a batch without maps."""
        outputs = (weight * module(x) for weight, module in zip(weights, self.modules.values(), strict=True))
        return channels_last(reduce(add, outputs))

    def shape_of(self, x: Tensor) -> MapShape:
        """Return size and order of the maps of an input ``[N, C, H, W]``; what strides over rows keeps maps apart."""
        by_rows = self.stride == 1 and computed_on_cpu(x)
        return MapShape(x.shape[0], x.shape[2], x.shape[3], by_rows)

    def plan(
        self, shape: MapShape, compute: torch.dtype, device: torch.device, joint: JointPixels | None = None
    ) -> Plan:
        """Return the plan for a size of input and the present modes of the normalisations.

        Args:
            shape: Size of the input.
            compute: Type of maps and products.
            device: Where they are.
            joint: The pixels of all processes, where these share statistics: their plans are the same.
        """
        modes = normalization_modes(self.candidates, shape, self.stride)
        pixels = shape.pixels if joint is None else joint.most
        key = (modes, pixels, compute.itemsize, device)
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = make_plan(self.candidates, modes, pixels, compute.itemsize, device)
        return self._plans[key]

    def passes(
        self, x: Tensor, compute: torch.dtype, policy: SavePolicy, joint: JointPixels | None = None
    ) -> MixturePasses:
        """Return the passes for an input like ``x``, ``[N, C, H, W]``, computed in a type; ``joint`` as by `plan`."""
        shape = self.shape_of(x)
        return MixturePasses(self.plan(shape, compute, x.device, joint), policy, shape, compute, joint)

    def changed(self) -> list[Tensor]:
        """Return what a forward pass in training changes: running averages, ``[C]``, and their counts of batches."""
        norms = [unit.norm for unit in self.units]
        buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
        return [buffer for several in buffers for buffer in several if buffer is not None]

    @property
    def recordable(self) -> bool:
        """Whether the passes can be recorded on a GPU: no sums go between processes, no level has statistics apart."""
        return self._recordable and not are_joint([unit.norm for unit in self.units])

    def recording(self, layer: MixturePasses, x: Tensor, parameters: Sequence[Tensor]) -> Recording | None:
        """Return the recorded passes for an input like ``x``, ``[N, C, H, W]``; ``None`` where passes run as they are.

        Args:
            layer: The mixture for the size of ``x``.
            x: The input.
            parameters: Parameters of all candidates; a recording knows where they are.
        """
        if not (x.is_cuda and uses_triton(x) and self.recordable):
            return None
        places = tuple(tensor.data_ptr() for tensor in (*parameters, *self.changed()))
        modes = tuple(layer.plan.use_batch_stats.values())
        key = (layer.shape, modes, x.dtype, layer.compute, rounding_of_convolutions())
        return self._recordings.find(key, places)


def _compute_type(x: Tensor) -> torch.dtype:
    """Return the type of maps and products: autocast's where it is on, the input's otherwise."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _WeightedSum(torch.autograd.Function):
    """:class:`FusedMixture` for autograd; docs/fused.md derives the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        mixture: FusedMixture,
        compute: torch.dtype,
        wanted: bool,
        joint: JointPixels | None,
        x: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        with on_device_of(x), torch.autocast(x.device.type, enabled=False):
            wanted = wanted and any(ctx.needs_input_grad)
            layer = mixture.passes(x, compute, mixture.policy if wanted else NOTHING, joint)
            recording = mixture.recording(layer, x, parameters) if wanted else None
            ctx.layer, ctx.replayed = layer, None
            token: Token | None = None
            if recording is not None and recording.ready():
                y, token = recording.forward((x, weights))
                result = y.clone()
            else:
                result, tape = layer.forward(x, weights, parameters)
                token = (
                    None
                    if recording is None
                    else _record(recording, mixture, layer, x, weights, parameters, result, tape)
                )
            if recording is not None and token is not None:
                ctx.token, ctx.replayed, ctx.generation = token, recording, recording.memory.generation
                ctx.parameters = parameters
            elif wanted:
                ctx.names = list(tape.tensors)
                ctx.save_for_backward(x, weights, *parameters, *tape.tensors.values())
            return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by input, weights and parameters."""
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.replayed is not None:
                return *[None] * GIVEN, *_replay_backward(ctx, grad)
            x, weights, *tensors = ctx.saved_tensors
            split = len(tensors) - len(ctx.names)
            tape = Tape(dict(zip(ctx.names, tensors[split:], strict=True)))
            needs = ctx.needs_input_grad[GIVEN:]
            return *[None] * GIVEN, *ctx.layer.backward(tape, x, weights, tensors[:split], needs, grad)


def _record(
    recording: Recording,
    mixture: FusedMixture,
    layer: MixturePasses,
    x: Tensor,
    weights: Tensor,
    parameters: tuple[Tensor, ...],
    y: Tensor,
    tape: Tape,
) -> Token | None:
    """Record the forward pass that has just run, once it has run often enough; see :meth:`Recording.record_forward`."""
    recording.names = list(tape.tensors)

    def run(x: Tensor, weights: Tensor, places: Sequence[Tensor]) -> Outputs:
        y, tape = layer.forward(x, weights, parameters, dict(zip(recording.names, places[1:], strict=True)))
        return [y, *tape.tensors.values()]

    found: Outputs = [y, *tape.tensors.values()]
    return recording.record_forward(run, (x, weights), found, mixture.changed(), layer.plan)


def _replay_backward(ctx: Any, grad: Tensor) -> Outputs:
    """Run the backward pass of a forward pass that was replayed."""
    recording: Recording = ctx.replayed
    layer: MixturePasses = ctx.layer
    needs = ctx.needs_input_grad[GIVEN:]
    recording.check(ctx.generation)
    if recording.forward_pass is None:
        raise ValueError("the forward pass has not been recorded")
    x, weights = recording.forward_pass.inputs
    kept = [tensor for tensor in recording.forward_pass.outputs[1:] if tensor is not None]
    tape = Tape(dict(zip(recording.names, kept, strict=True)))

    def run(grad: Tensor) -> Outputs:
        return layer.backward(tape, x, weights, ctx.parameters, needs, grad)

    return recording.backward(run, grad, needs, ctx.generation, layer.plan)
