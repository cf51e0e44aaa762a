"""The fused mixed layer: the weighted sum of all candidates and its gradient as one operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hitdet_nni.errors import InputError
from hitdet_nni.search.fused.batch_norm import RunningUpdates, statistics_type
from hitdet_nni.search.fused.call import Call, Gradients, Output
from hitdet_nni.search.fused.backend import passes, precision_of_convolutions, uses_triton
from hitdet_nni.search.fused.depthwise_group import make_room
from hitdet_nni.search.fused.expansion import ExpansionGradient, Moments, expansion_statistics, fold
from hitdet_nni.search.fused.layout import MapShape, channels_last
from hitdet_nni.search.fused.plan import (
    DenseCandidate,
    Plan,
    make_plan,
    normalization_modes,
    read_candidates,
    units,
)
from hitdet_nni.search.fused.products import add_product
from hitdet_nni.search.fused.saving import NOTHING, SAVINGS, Kept, Saving, Tape

PLANS = 64
"""Plans kept by a mixture; one is needed for each size of input."""


class FusedMixture:
    """The weighted sum of candidate operators of one layer, computed as one operation.

    Equal to ``sum(weight * module(x))`` in outputs, gradients and running statistics but for rounding. The candidates'
    modules are read, never called: their hooks do not run. The gradient cannot be differentiated again.

    Args:
        modules: The candidates by name: :mod:`hitdet_nni.model.blocks`, all for one input and output shape.
        saving: What is kept for the gradient, one of :data:`~hitdet_nni.search.fused.saving.SAVINGS`.

    Raises:
        InputError: If a candidate or its batch normalisation is of another kind, or the mode is unknown.
    """

    def __init__(self, modules: Mapping[str, nn.Module], saving: Saving = "slim") -> None:
        if saving not in SAVINGS:
            raise InputError(f"unknown saving mode {saving!r}", key="supernet.saving", allowed=SAVINGS)
        self.kept = SAVINGS[saving]
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

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the candidates' outputs.

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
        """Size and order of the maps of an input ``[N, C, H, W]``; what strides over rows keeps maps apart."""
        by_rows = self.stride == 1 and x.device.type == "cpu" and not uses_triton(x)
        return MapShape(x.shape[0], x.shape[2], x.shape[3], by_rows)

    def plan(self, shape: MapShape, compute: torch.dtype, device: torch.device) -> Plan:
        """The plan for a size of input and the present modes of the normalisations."""
        modes = normalization_modes(self.candidates, shape, self.stride)
        key = (modes, shape, compute.itemsize, device)
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = make_plan(self.candidates, modes, shape, compute.itemsize, device)
        return self._plans[key]


def _compute_type(x: Tensor) -> torch.dtype:
    """Type of maps and products: autocast's where it is on, the input's otherwise."""
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
            kept = mixture.kept if any(ctx.needs_input_grad) else NOTHING
            call, moments, updates = _start(mixture, plan, kept, shape, compute, x, weights, parameters)
            exact = statistics_type(compute)
            total = torch.zeros(call.shape_out.pixels, mixture.out_channels, dtype=exact, device=x.device)
            output = Output(total)
            group_pass, dense_pass = passes(x)
            with precision_of_convolutions(x.device):
                for number, group in enumerate(plan.groups):
                    group_pass(group, number, call).forward(output, updates)
                for candidate in plan.dense:
                    dense_pass(candidate, call).forward(output, updates)
            updates.apply()
            output.add_constant(call)
            kind = compute
            if mixture.has_residual:
                output.total.addcmul_(call.given, call.residual_weight)
                kind = torch.promote_types(compute, x.dtype)
            if any(ctx.needs_input_grad):
                _save(ctx, mixture, call, moments, x, weights)
            return channels_last(call.shape_out.images(output.total.to(kind)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by input, weights and parameters."""
        with torch.autocast(grad.device.type, enabled=False):
            return _backward(ctx, grad)


def _start(
    mixture: FusedMixture,
    plan: Plan,
    kept: Kept,
    shape: MapShape,
    compute: torch.dtype,
    x: Tensor,
    weights: Tensor,
    parameters: tuple[Tensor, ...],
) -> tuple[Call, Moments | None, RunningUpdates]:
    """Statistics and folding of the expansions, which come before all else."""
    matrix = shape.matrix(x)
    inputs = matrix.to(compute)
    updates = RunningUpdates()
    moments = Moments.of(inputs) if any(expansion.by_batch for expansion in plan.expansions) else None
    tape, folded = Tape(), []
    for number, expansion in enumerate(plan.expansions):
        inverse, mean = expansion_statistics(expansion, parameters, moments, updates, shape.pixels)
        tape.put(inverse, "inverse deviation", number)
        if mean is not None:
            tape.put(mean, "running mean", number)
        source = inputs if moments is None or mean is not None else moments.centred
        folded.append(fold(expansion, parameters, source, inverse, mean))
    given = weights.detach().to(statistics_type(compute))
    shape_out = shape.strided(mixture.stride)
    size = (len(mixture.candidates), shape_out.pixels, mixture.out_channels)
    room = inputs.new_empty(size) if kept.projections and x.device.type == "cpu" else None
    call = Call(plan, kept, parameters, given, matrix, inputs, shape, shape_out, folded, tape, room)
    return call, moments, updates


def _save(ctx: Any, mixture: FusedMixture, call: Call, moments: Moments | None, x: Tensor, weights: Tensor) -> None:
    if moments is not None:
        call.tape.put(moments.mean, "mean")
        call.tape.put(moments.correction, "correction")
        call.tape.put(moments.covariance, "covariance")
    ctx.mixture, ctx.plan, ctx.shape, ctx.compute = mixture, call.plan, call.shape, call.compute
    ctx.names = list(call.tape.tensors)
    ctx.save_for_backward(x, weights, *call.parameters, *call.tape.tensors.values())


def _restart(ctx: Any) -> tuple[Call, Moments | None]:
    """The call as the forward pass left it."""
    mixture: FusedMixture = ctx.mixture
    x, weights, *tensors = ctx.saved_tensors
    split = len(tensors) - len(ctx.names)
    parameters = tensors[:split]
    tape = Tape(dict(zip(ctx.names, tensors[split:], strict=True)))
    matrix = ctx.shape.matrix(x)
    inputs = matrix.to(ctx.compute)
    moments = None
    mean = tape.get("mean")
    if mean is not None:
        moments = Moments.restored(inputs, mean, tape[("correction",)], tape[("covariance",)])
    folded = []
    for number, expansion in enumerate(ctx.plan.expansions):
        running = tape.get("running mean", number)
        source = inputs if moments is None or running is not None else moments.centred
        folded.append(fold(expansion, parameters, source, tape["inverse deviation", number], running))
    given = weights.detach().to(statistics_type(ctx.compute))
    shape_out = ctx.shape.strided(mixture.stride)
    kept: Kept = mixture.kept
    return Call(ctx.plan, kept, parameters, given, matrix, inputs, ctx.shape, shape_out, folded, tape), moments


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    call, moments = _restart(ctx)
    _, _, of_input, of_weights, *of_parameters = ctx.needs_input_grad
    output = call.shape_out.matrix(grad)
    exact = statistics_type(call.compute)  # many products are added to it, each as large as their sum
    products = None
    by_input = torch.zeros_like(call.inputs, dtype=exact)
    if ctx.mixture.has_residual:
        exact_output = output.to(exact)
        if of_input:
            by_input = exact_output * call.residual_weight
        products = (exact_output * call.given).sum()
    gradients = Gradients(
        output=output.to(call.compute),
        of_input=of_input,
        of_parameters=any(of_parameters),
        input=by_input,
        input_products=products,
        parameters=[None] * len(of_parameters),
    )
    gradients.expansions = [
        ExpansionGradient(expansion, folded, of_parameters=gradients.of_parameters)
        for expansion, folded in zip(call.plan.expansions, call.folded, strict=True)
    ]
    if gradients.of_parameters:
        make_room(call.plan.groups, call.parameters, gradients)
    group_pass, dense_pass = passes(call.given)
    with precision_of_convolutions(grad.device):
        for number, group in enumerate(call.plan.groups):
            group_pass(group, number, call).backward(gradients)
        for candidate in call.plan.dense:
            dense_pass(candidate, call).backward(gradients)
    by_weights = gradients.finish_last(call)
    if gradients.of_input or gradients.of_parameters:
        for expansion in gradients.expansions:
            _finish(expansion, gradients, moments)
    by_x = channels_last(call.shape.images(gradients.input.to(call.given.dtype))) if of_input else None
    return None, None, by_x, by_weights if of_weights else None, *gradients.parameters


def _finish(expansion: ExpansionGradient, gradients: Gradients, moments: Moments | None) -> None:
    through = expansion.through_statistics() if gradients.of_input else None
    expansion.parameter_gradients(moments, gradients.parameters)  # last: it ends the collected gradient
    if through is not None and moments is not None:
        vector, matrix = through
        gradients.input = add_product(gradients.input, moments.centred, matrix.to(moments.centred.dtype))
        gradients.input.add_(vector)
