"""The fused mixed layer: the weighted sum of all candidates and its gradient as one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hitdet_nni.errors import InputError
from hitdet_nni.kernels.layout import MapShape, channels_last
from hitdet_nni.kernels.products import add_product
from hitdet_nni.model.level_norm import LevelBatchNorm2d
from hitdet_nni.nas.fused.backend import passes, precision_of_convolutions, uses_triton
from hitdet_nni.nas.fused.batch_norm import RunningUpdates, statistics_type
from hitdet_nni.nas.fused.depthwise_group import allocate_buffers
from hitdet_nni.nas.fused.expansion import ExpansionGradient, Moments, expansion_statistics, fold
from hitdet_nni.nas.fused.forward_context import ForwardContext, Gradients, Output
from hitdet_nni.nas.fused.joint import Joint, are_joint, count_pixels
from hitdet_nni.nas.fused.plan import (
    DenseCandidate,
    Plan,
    make_plan,
    normalization_modes,
    units,
)
from hitdet_nni.nas.fused.reading import read_candidates
from hitdet_nni.nas.fused.recording import Outputs, Recording, Recordings
from hitdet_nni.nas.fused.save_policy import FUSED_MODES, NOTHING, FusedMode, SavePolicy, Tape

PLANS = 64
"""Plans kept by a mixture; one is needed for each size of input."""


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
        self._modules = dict(modules)
        self._read()

    def _read(self) -> None:
        self.candidates = read_candidates(self._modules)
        self._units = units(self.candidates)
        first = self.candidates[0]
        self.out_channels = first.last.channels
        self.stride: int = (first.unit if isinstance(first, DenseCandidate) else first.depthwise).conv.stride[0]
        self.has_residual = any(one.residual for one in self.candidates)
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._recordings = Recordings()
        norms = [unit.norm for unit in self._units]
        self._recordable = all(norm.momentum is not None and not isinstance(norm, LevelBatchNorm2d) for norm in norms)

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the candidates' outputs.

        Args:
            x: ``[N, C, H, W]`` in any memory order.
            weights: One number a candidate, in the order of the modules.

        Returns:
            ``[N, C_out, ceil(H / stride), ceil(W / stride)]`` in channels-last order; under autocast of its type.
        """
        if any(unit.stale for unit in self._units):
            self._read()
        parameters = [p for unit in self._units for p in (unit.conv.weight, unit.norm.weight, unit.norm.bias)]
        result: Tensor = _WeightedSum.apply(self, _compute_type(x), x, weights, *parameters)
        return result

    def shape_of(self, x: Tensor) -> MapShape:
        """Return size and order of the maps of an input ``[N, C, H, W]``; what strides over rows keeps maps apart."""
        by_rows = self.stride == 1 and x.device.type == "cpu" and not uses_triton(x)
        return MapShape(x.shape[0], x.shape[2], x.shape[3], by_rows)

    def plan(self, shape: MapShape, compute: torch.dtype, device: torch.device) -> Plan:
        """Return the plan for a size of input and the present modes of the normalisations."""
        modes = normalization_modes(self.candidates, shape, self.stride)
        key = (modes, shape, compute.itemsize, device)
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = make_plan(self.candidates, modes, shape, compute.itemsize, device)
        return self._plans[key]

    def changed(self) -> list[Tensor]:
        """Return what a forward pass in training changes: running averages, ``[C]``, and their counts of batches."""
        norms = [unit.norm for unit in self._units]
        buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
        return [buffer for several in buffers for buffer in several if buffer is not None]

    def recording(self, layer: _Layer, x: Tensor, parameters: Sequence[Tensor]) -> Recording | None:
        """Return the recorded passes for an input like ``x``, ``[N, C, H, W]``; ``None`` where passes run as they are.

        Args:
            layer: The mixture for the size of ``x``.
            x: The input.
            parameters: Parameters of all candidates; a recording knows where they are.
        """
        if not (x.is_cuda and self._recordable and uses_triton(x)) or are_joint([unit.norm for unit in self._units]):
            return None  # processes exchange sums in the middle of a pass
        places = tuple(tensor.data_ptr() for tensor in (*parameters, *self.changed()))
        key = (layer.plan, x.dtype, layer.compute, torch.backends.cudnn.allow_tf32)
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
        ctx: Any, mixture: FusedMixture, compute: torch.dtype, x: Tensor, weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            shape = mixture.shape_of(x)
            plan = mixture.plan(shape, compute, x.device)
            wanted = any(ctx.needs_input_grad)
            layer = _Layer(mixture, plan, mixture.policy if wanted else NOTHING, shape, compute)
            recording = mixture.recording(layer, x, parameters) if wanted else None
            ctx.layer, ctx.replayed = layer, None
            if recording is not None and recording.ready():
                y, ctx.token = recording.forward((x, weights))
                ctx.replayed, ctx.generation, ctx.parameters = recording, recording.generation, parameters
                result: Tensor = y.clone()
                return result
            result, tape = layer.forward(x, weights, parameters)
            if wanted:
                ctx.names = list(tape.tensors)
                ctx.save_for_backward(x, weights, *parameters, *tape.tensors.values())
            if recording is not None:
                _record(recording, layer, x, weights, parameters, result, tape)
            return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by input, weights and parameters."""
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.replayed is not None:
                return None, None, *_replay_backward(ctx, grad)
            x, weights, *tensors = ctx.saved_tensors
            split = len(tensors) - len(ctx.names)
            tape = Tape(dict(zip(ctx.names, tensors[split:], strict=True)))
            needs = ctx.needs_input_grad[2:]
            return None, None, *ctx.layer.backward(tape, x, weights, tensors[:split], needs, grad)


def _record(
    recording: Recording,
    layer: _Layer,
    x: Tensor,
    weights: Tensor,
    parameters: tuple[Tensor, ...],
    y: Tensor,
    tape: Tape,
) -> None:
    """Record the forward pass that has just run, once it has run often enough."""

    def run(x: Tensor, weights: Tensor) -> Outputs:
        y, tape = layer.forward(x, weights, parameters)
        return [y, *tape.tensors.values()]

    recording.names = list(tape.tensors)
    recording.record_forward(run, (x, weights), [y, *tape.tensors.values()], layer.mixture.changed())


def _replay_backward(ctx: Any, grad: Tensor) -> Outputs:
    """Run the backward pass of a forward pass that was replayed."""
    recording: Recording = ctx.replayed
    layer: _Layer = ctx.layer
    needs = ctx.needs_input_grad[2:]
    if recording.forward_pass is None:
        raise ValueError("the forward pass has not been recorded")
    x, weights = recording.forward_pass.inputs
    kept = [tensor for tensor in recording.forward_pass.outputs[1:] if tensor is not None]
    tape = Tape(dict(zip(recording.names, kept, strict=True)))

    def run(grad: Tensor) -> Outputs:
        return layer.backward(tape, x, weights, ctx.parameters, needs, grad)

    return recording.backward(run, grad, needs, ctx.generation)


@dataclass(frozen=True)
class _Layer:
    """A mixture for one size of input.

    Attributes:
        mixture: The mixture.
        plan: What is computed together.
        policy: What is kept for the backward pass.
        shape: Size of the input's maps.
        compute: Type of maps and products.
    """

    mixture: FusedMixture
    plan: Plan
    policy: SavePolicy
    shape: MapShape
    compute: torch.dtype

    def forward(self, x: Tensor, weights: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tape]:
        """Return the weighted sum, ``[N, C_out, H_out, W_out]``, and what its gradients need."""
        mixture, plan = self.mixture, self.plan
        context, moments, updates = _start(mixture, plan, self.policy, self.shape, self.compute, x, weights, parameters)
        exact = statistics_type(self.compute)
        output = Output(torch.zeros(context.shape_out.pixels, mixture.out_channels, dtype=exact, device=x.device))
        group_pass, dense_pass = passes(x)
        with precision_of_convolutions(x.device):
            for number, group in enumerate(plan.groups):
                group_pass(group, number, context).forward(output, updates)
            for candidate in plan.dense:
                dense_pass(candidate, context).forward(output, updates)
        updates.apply()
        output.add_constant(context)
        kind = self.compute
        if mixture.has_residual:
            output.total.addcmul_(context.given, context.residual_weight)
            kind = torch.promote_types(self.compute, x.dtype)
        if moments is not None:
            context.tape.put(moments.mean, "mean")
            context.tape.put(moments.correction, "correction")
            context.tape.put(moments.covariance, "covariance")
        return channels_last(context.shape_out.images(output.total.to(kind))), context.tape

    def backward(
        self,
        tape: Tape,
        x: Tensor,
        weights: Tensor,
        parameters: Sequence[Tensor],
        needs: Sequence[bool],
        grad: Tensor,
    ) -> list[Tensor | None]:
        """Return the gradients by input, weights and parameters, as far as they are needed."""
        context, moments = _restart(self, tape, x, weights, parameters)
        return _backward(self.mixture, context, moments, needs, grad)


def _start(
    mixture: FusedMixture,
    plan: Plan,
    policy: SavePolicy,
    shape: MapShape,
    compute: torch.dtype,
    x: Tensor,
    weights: Tensor,
    parameters: Sequence[Tensor],
) -> tuple[ForwardContext, Moments | None, RunningUpdates]:
    """Compute statistics and folding of the expansions, which come before all else."""
    matrix = shape.matrix(x)
    inputs = matrix.to(compute)
    updates = RunningUpdates()
    shape_out = shape.strided(mixture.stride)
    given = weights.detach().to(statistics_type(compute))
    joint = joint_out = None
    tape, folded = Tape(), []
    if are_joint([unit.norm for unit in plan.use_batch_stats]):
        joint, joint_out = count_pixels((shape.pixels, shape_out.pixels), given)
        tape.put(joint.count, "pixels")
        tape.put(joint_out.count, "pixels of the output")
    pixels = shape.pixels if joint is None else joint.count
    moments = Moments.of(inputs, joint) if any(expansion.use_batch_stats for expansion in plan.expansions) else None
    for number, expansion in enumerate(plan.expansions):
        inverse, mean = expansion_statistics(expansion, parameters, moments, updates, pixels)
        tape.put(inverse, "inverse deviation", number)
        if mean is not None:
            tape.put(mean, "running mean", number)
        source = inputs if moments is None or mean is not None else moments.centred
        folded.append(fold(expansion, parameters, source, inverse, mean))
    size = (len(mixture.candidates), shape_out.pixels, mixture.out_channels)
    buffer = inputs.new_empty(size) if policy.projections and x.device.type == "cpu" else None
    context = ForwardContext(
        plan, policy, parameters, given, matrix, inputs, shape, shape_out, folded, tape, buffer, joint, joint_out
    )
    return context, moments, updates


def _restart(
    layer: _Layer, tape: Tape, x: Tensor, weights: Tensor, parameters: Sequence[Tensor]
) -> tuple[ForwardContext, Moments | None]:
    """Return the call as the forward pass left it."""
    matrix = layer.shape.matrix(x)
    inputs = matrix.to(layer.compute)
    moments = None
    mean = tape.get("mean")
    if mean is not None:
        moments = Moments.restored(inputs, mean, tape[("correction",)], tape[("covariance",)])
    folded = []
    for number, expansion in enumerate(layer.plan.expansions):
        running = tape.get("running mean", number)
        source = inputs if moments is None or running is not None else moments.centred
        folded.append(fold(expansion, parameters, source, tape["inverse deviation", number], running))
    given = weights.detach().to(statistics_type(layer.compute))
    shape_out = layer.shape.strided(layer.mixture.stride)
    policy, shape = layer.mixture.policy, layer.shape
    context = ForwardContext(layer.plan, policy, parameters, given, matrix, inputs, shape, shape_out, folded, tape)
    count, count_out = tape.get("pixels"), tape.get("pixels of the output")
    if count is not None and count_out is not None:
        context = replace(context, joint=Joint(shape.pixels, count), joint_out=Joint(shape_out.pixels, count_out))
    return context, moments


def _backward(
    mixture: FusedMixture, context: ForwardContext, moments: Moments | None, needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    of_input, of_weights, *of_parameters = needs
    output = context.shape_out.matrix(grad)
    exact = statistics_type(context.compute)  # many products are added to it, each as large as their sum
    products = None
    grad_input = torch.zeros_like(context.inputs, dtype=exact)
    if mixture.has_residual:
        exact_output = output.to(exact)
        if of_input:
            grad_input = exact_output * context.residual_weight
        products = (exact_output * context.given).sum()
    gradients = Gradients(
        output=output.to(context.compute),
        of_input=of_input,
        of_parameters=any(of_parameters),
        input=grad_input,
        input_products=products,
        parameters=[None] * len(of_parameters),
    )
    gradients.expansions = [
        ExpansionGradient(expansion, folded, of_parameters=gradients.of_parameters)
        for expansion, folded in zip(context.plan.expansions, context.folded, strict=True)
    ]
    if gradients.of_parameters:
        allocate_buffers(context.plan.groups, context.parameters, gradients)
    group_pass, dense_pass = passes(context.given)
    with precision_of_convolutions(grad.device):
        for number, group in enumerate(context.plan.groups):
            group_pass(group, number, context).backward(gradients)
        for candidate in context.plan.dense:
            dense_pass(candidate, context).backward(gradients)
    grad_weights = gradients.finish_last(context)
    if gradients.of_input or gradients.of_parameters:
        for expansion in gradients.expansions:
            _finish(expansion, gradients, moments, context.joint)
    grad_x = channels_last(context.shape.images(gradients.input.to(context.given.dtype))) if of_input else None
    return [grad_x, grad_weights if of_weights else None, *gradients.parameters]


def _finish(expansion: ExpansionGradient, gradients: Gradients, moments: Moments | None, joint: Joint | None) -> None:
    through = expansion.through_statistics(joint) if gradients.of_input else None
    expansion.parameter_gradients(moments, gradients.parameters)  # last: it ends the collected gradient
    if through is not None and moments is not None:
        vector, matrix = through
        gradients.input = add_product(gradients.input, moments.centred, matrix.to(moments.centred.dtype))
        gradients.input.add_(vector)
