"""The forward and the backward pass of a fused mixed layer for one size of input; docs/fused.md derives them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hitdet_nni.engine.joint_statistics import Joint, statistics_type
from hitdet_nni.kernels.layout import MapShape, channels_last
from hitdet_nni.kernels.products import add_product
from hitdet_nni.nas.fused.backend import computed_on_cpu, passes, precision_of_convolutions
from hitdet_nni.nas.fused.batch_norm import RunningUpdates
from hitdet_nni.nas.fused.depthwise_group import allocate_buffers
from hitdet_nni.nas.fused.expansion import ExpansionGradient, Moments, expansion_statistics, fold
from hitdet_nni.nas.fused.forward_context import ForwardContext, Gradients, Output
from hitdet_nni.nas.fused.joint import JointPixels
from hitdet_nni.nas.fused.plan import Plan
from hitdet_nni.nas.fused.save_policy import SavePolicy, Tape


@dataclass(frozen=True)
class MixturePasses:
    """A mixture's forward and backward pass for one size of input.

    Attributes:
        plan: What is computed together.
        policy: What is kept for the backward pass.
        shape: Size of the input's maps.
        compute: Type of maps and products.
        joint: The pixels of all processes, where these share statistics.
    """

    plan: Plan
    policy: SavePolicy
    shape: MapShape
    compute: torch.dtype
    joint: JointPixels | None = None

    @property
    def joint_pixels(self) -> tuple[Joint | None, Joint | None]:
        """Pixels of the input and of the output in all processes, where these share statistics."""
        return (None, None) if self.joint is None else (self.joint.inputs, self.joint.outputs)

    def forward(
        self, x: Tensor, weights: Tensor, parameters: Sequence[Tensor], places: Mapping[Hashable, Tensor] | None = None
    ) -> tuple[Tensor, Tape]:
        """Return the weighted sum of the candidates for ``[N, C, H, W]``, and what its gradients need.

        With ``places`` large tensors of the tape lie there: see :class:`~hitdet_nni.nas.fused.save_policy.Tape`.
        """
        plan = self.plan
        context, moments, updates = _start(self, Tape(places=places or {}), x, weights, parameters)
        exact = statistics_type(self.compute)
        output = Output(torch.zeros(context.shape_out.pixels, plan.out_channels, dtype=exact, device=x.device))
        group_pass, dense_pass = passes(x)
        with precision_of_convolutions(x.device):
            for number, group in enumerate(plan.groups):
                group_pass(group, number, context).forward(output, updates)
            for candidate in plan.dense:
                dense_pass(candidate, context).forward(output, updates)
        updates.apply()
        output.add_constant(context)
        kind = self.compute
        if plan.has_residual:
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
        """Return the gradients by input, weights and parameters, each of the shape of that, as far as they are needed.

        Args:
            tape: From :meth:`forward`.
            x: Its input, ``[N, C, H, W]``.
            weights: One number a candidate, ``[n]``.
            parameters: Parameters of all candidates, by slot.
            needs: Which gradients are needed: by input, weights and each parameter.
            grad: Gradient by the output, of its shape.
        """
        context, moments = _restart(self, tape, x, weights, parameters)
        return _backward(context, moments, needs, grad)


def _start(
    passes: MixturePasses, tape: Tape, x: Tensor, weights: Tensor, parameters: Sequence[Tensor]
) -> tuple[ForwardContext, Moments | None, RunningUpdates]:
    """Compute statistics and folding of the expansions, which come before all else."""
    plan, policy, shape, compute = passes.plan, passes.policy, passes.shape, passes.compute
    matrix = shape.matrix(x).contiguous()  # of a slice of channels it is not
    inputs = matrix.to(compute)
    updates = RunningUpdates()
    shape_out = shape.strided(plan.stride)
    given = weights.detach().to(statistics_type(compute))
    joint, joint_out = passes.joint_pixels
    folded = []
    pixels = shape.pixels if joint is None else joint.count
    moments = Moments.of(inputs, joint) if any(expansion.use_batch_stats for expansion in plan.expansions) else None
    for number, expansion in enumerate(plan.expansions):
        inverse, mean = expansion_statistics(expansion, parameters, moments, updates, pixels)
        tape.put(inverse, "inverse deviation", number)
        if mean is not None:
            tape.put(mean, "running mean", number)
        source = inputs if moments is None or mean is not None else moments.centred
        folded.append(fold(expansion, parameters, source, inverse, mean))
    size = (len(plan.last), shape_out.pixels, plan.out_channels)
    buffer = inputs.new_empty(size) if policy.projections and computed_on_cpu(x) else None
    context = ForwardContext(
        plan, policy, parameters, given, matrix, inputs, shape, shape_out, folded, tape, buffer, joint, joint_out
    )
    return context, moments, updates


def _restart(
    layer: MixturePasses, tape: Tape, x: Tensor, weights: Tensor, parameters: Sequence[Tensor]
) -> tuple[ForwardContext, Moments | None]:
    """Return the call as the forward pass left it."""
    matrix = layer.shape.matrix(x).contiguous()
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
    shape_out = layer.shape.strided(layer.plan.stride)
    policy, shape = layer.policy, layer.shape
    joint, joint_out = layer.joint_pixels
    context = ForwardContext(
        layer.plan, policy, parameters, given, matrix, inputs, shape, shape_out, folded, tape, None, joint, joint_out
    )
    return context, moments


def _backward(
    context: ForwardContext, moments: Moments | None, needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    of_input, of_weights, *of_parameters = needs
    output = context.shape_out.matrix(grad)
    exact = statistics_type(context.compute)  # many products are added to it, each as large as their sum
    products = None
    grad_input = torch.zeros_like(context.inputs, dtype=exact)
    if context.plan.has_residual:
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
    gradients.put_all()
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
