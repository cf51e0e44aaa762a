"""Dense convolutions: forward and backward pass of one candidate."""

from __future__ import annotations

from torch import Tensor

from hitdet_nni.kernels import dense
from hitdet_nni.search.fused.batch_norm import RunningUpdates, Statistics, normalize, normalize_gradient
from hitdet_nni.search.fused.call import Call, Gradients, Output
from hitdet_nni.search.fused.depthwise_group import mask_
from hitdet_nni.search.fused.plan import DenseCandidate


class DensePass:
    """A dense candidate in one call.

    Args:
        candidate: The candidate.
        call: The call.
    """

    def __init__(self, candidate: DenseCandidate, call: Call) -> None:
        self.candidate = candidate
        self.call = call

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidate's weighted output to ``output``."""
        call, unit = self.call, self.candidate.unit
        convolved = self._convolved()
        statistics = call.new_statistics(unit, convolved, updates)
        output.total.addcmul_(self._activated(convolved, statistics), call.weight_of[self.candidate.index])
        call.keep_projection(self.candidate.index, convolved)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidate's part to ``gradients``."""
        call, unit, index = self.call, self.candidate.unit, self.candidate.index
        convolved = call.tape.get("projection", index)
        if convolved is None:
            convolved = self._convolved()
        statistics = call.kept_statistics(unit)
        grad = gradients.output.clone()
        mask_(grad, self._activated(convolved, statistics))
        further = gradients.of_input or gradients.of_parameters
        by_convolved, by_scale, by_shift = normalize_gradient(
            grad, convolved, statistics, call.weighted_scales[index], of_input=further
        )
        gradients.last[index] = by_scale, by_shift
        if not further:
            return
        self._through_convolution(by_convolved, gradients)

    def _through_convolution(self, by_convolved: Tensor, gradients: Gradients) -> None:
        """Take the gradient by the convolution's output, ``[P_out, C_out]``, to those by its input and kernels."""
        call, unit = self.call, self.candidate.unit
        by_input, by_kernels = dense.gradients(
            call.shape_out.images(by_convolved),
            call.shape.images(call.inputs),
            call.kernels(unit),
            unit.conv.stride[0],
            unit.conv.dilation[0],
            of_input=gradients.of_input,
            of_weight=gradients.of_parameters,
        )
        if by_input is not None:
            gradients.input += call.shape.matrix(by_input)
        if by_kernels is not None:
            gradients.parameters[unit.slot] = by_kernels

    def _convolved(self) -> Tensor:
        call, conv = self.call, self.candidate.unit.conv
        maps = dense.convolve(
            call.shape.images(call.inputs), call.kernels(self.candidate.unit), conv.stride[0], conv.dilation[0]
        )
        return call.shape_out.matrix(maps)

    def _activated(self, convolved: Tensor, statistics: Statistics) -> Tensor:
        unit = self.candidate.unit
        return normalize(convolved, statistics, self.call.scale(unit), self.call.shift(unit)).relu_()
