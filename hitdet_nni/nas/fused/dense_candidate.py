"""Dense convolutions: forward and backward pass of one candidate."""

from __future__ import annotations

from torch import Tensor

from hitdet_nni.kernels import dense
from hitdet_nni.nas.fused.batch_norm import RunningUpdates, Statistics, normalize, normalize_gradient
from hitdet_nni.nas.fused.depthwise_group import mask_
from hitdet_nni.nas.fused.forward_context import ForwardContext, Gradients, Output
from hitdet_nni.nas.fused.plan import DenseCandidate


class DensePass:
    """A dense candidate in one call.

    Args:
        candidate: The candidate.
        context: What the passes of the call share.
    """

    def __init__(self, candidate: DenseCandidate, context: ForwardContext) -> None:
        self.candidate = candidate
        self.context = context

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidate's weighted output to ``output``."""
        context, unit = self.context, self.candidate.unit
        convolved = self._convolved()
        statistics = context.new_statistics(unit, convolved, updates)
        output.total.addcmul_(self._activated(convolved, statistics), context.weight_of[self.candidate.index])
        context.keep_projection(self.candidate.index, convolved)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidate's part to ``gradients``."""
        context, unit, index = self.context, self.candidate.unit, self.candidate.index
        convolved = context.tape.get("projection", index)
        if convolved is None:
            convolved = self._convolved()
        statistics = context.saved_statistics(unit)
        grad = gradients.output.clone()
        mask_(grad, self._activated(convolved, statistics))
        further = gradients.of_input or gradients.of_parameters
        grad_convolved, grad_scale, grad_shift = normalize_gradient(
            grad, convolved, statistics, context.weighted_scales[index], of_input=further
        )
        gradients.last[index] = grad_scale, grad_shift
        if not further:
            return
        self._through_convolution(grad_convolved, gradients)

    def _through_convolution(self, grad_convolved: Tensor, gradients: Gradients) -> None:
        """Take the gradient by the convolution's output, ``[P_out, C_out]``, to those by its input and kernels."""
        context, unit = self.context, self.candidate.unit
        grad_input, grad_kernels = dense.gradients(
            context.shape_out.images(grad_convolved),
            context.shape.images(context.inputs),
            context.kernels(unit),
            unit.conv.stride[0],
            unit.conv.dilation[0],
            of_input=gradients.of_input,
            of_weight=gradients.of_parameters,
        )
        if grad_input is not None:
            gradients.input += context.shape.matrix(grad_input)
        if grad_kernels is not None:
            gradients.parameters[unit.slot] = grad_kernels

    def _convolved(self) -> Tensor:
        context, conv = self.context, self.candidate.unit.conv
        maps = dense.convolve(
            context.shape.images(context.inputs), context.kernels(self.candidate.unit), conv.stride[0], conv.dilation[0]
        )
        return context.shape_out.matrix(maps)

    def _activated(self, convolved: Tensor, statistics: Statistics) -> Tensor:
        unit = self.candidate.unit
        return normalize(convolved, statistics, self.context.scale(unit), self.context.shift(unit)).relu_()
