"""Candidates on a GPU, by the kernels of :mod:`hitdet_nni.kernels`.

The same arithmetic as on a CPU in fewer passes over memory: a hidden map is written by its expansion, read and written
by the depthwise convolution and by its normalisation, and read by the projection; ReLUs, statistics and sums over
pixels ride along. The last normalisations of a group's candidates are computed together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hitdet_nni.kernels.gpu import depthwise
from hitdet_nni.kernels.gpu.mixture import add_weighted_, last_gradient
from hitdet_nni.kernels.gpu.moments import Moments
from hitdet_nni.kernels.gpu.normalization import normalize_relu, normalize_relu_gradient_
from hitdet_nni.kernels.products import add_product, correlate, multiply
from hitdet_nni.nas.fused.batch_norm import ColumnMoments, RunningUpdates, Statistics, running_statistics
from hitdet_nni.nas.fused.dense_candidate import DensePass
from hitdet_nni.nas.fused.depthwise_group import GroupPass, inner_products
from hitdet_nni.nas.fused.forward_context import Gradients, Output, put_statistics, saved_statistics
from hitdet_nni.nas.fused.plan import width


@dataclass
class _Maps:
    """The maps of a chunk before and behind its depthwise convolution.

    Attributes:
        raw: The expansion before its normalisation, where that is computed apart, else ``source``; ``[P, channels]``.
        raw_statistics: What that is normalised by.
        source: What the convolution reads, before its ReLU.
        convolved: What it gives, ``[P_out, channels]``.
        statistics: What that is normalised by.
        taps: Depthwise kernels, ``[k k, channels]``.
        scale: Of the normalisation behind the convolution, ``[channels]``.
        shift: Likewise.
    """

    raw: Tensor
    raw_statistics: Statistics | None
    source: Tensor
    convolved: Tensor
    statistics: Statistics
    taps: Tensor
    scale: Tensor
    shift: Tensor

    def activated(self) -> Tensor:
        """Return what the projection reads, ``[P_out, channels]``."""
        statistics = self.statistics
        return normalize_relu(self.convolved, statistics.mean, statistics.inverse_deviation, self.scale, self.shift)


class TritonGroupPass(GroupPass):
    """A group of depthwise candidates in one call, on a GPU; see :class:`GroupPass`."""

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidates' weighted outputs, less what is the same at all pixels, to ``output``."""
        context, candidates = self.context, self.group.candidates
        matrices, _ = self._matrices(updates)
        statistics = self._last_statistics(matrices, updates)
        weighted_scales = context.of_candidates(context.weighted_scale_rows, candidates)
        add_weighted_(output.total, matrices, statistics.mean, statistics.inverse_deviation, weighted_scales)
        output.last |= dict.fromkeys(candidate.index for candidate in candidates)
        if context.policy.projections:
            context.tape.put(matrices, "projections", self.number)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidates' part to ``gradients``."""
        context, group = self.context, self.group
        maps: list[_Maps | None] = [None] * len(group.chunks)
        matrices = context.tape.get("projections", self.number)
        if matrices is None:
            matrices, maps = self._matrices(None)
        further = gradients.of_input or gradients.of_parameters
        statistics = saved_statistics(context.tape, True, 0.0, "last", self.number)
        grad_matrices, grad_scales, grad_shift = last_gradient(
            gradients.output.contiguous(),
            matrices,
            statistics.mean,
            statistics.inverse_deviation,
            context.of_candidates(context.weighted_scale_rows, group.candidates),
            context.of_candidates(context.plan.last_use_batch_stats, group.candidates),
            of_matrices=further,
            joint_means=None if context.joint_out is None else context.joint_out.means,
        )
        del matrices
        for candidate, grad_scale in zip(group.candidates, grad_scales.unbind(), strict=True):
            gradients.last[candidate.index] = grad_scale, grad_shift
        if grad_matrices is None:
            return
        for chunk in range(len(group.chunks)):
            one, maps[chunk] = maps[chunk], None
            self._maps_backward(chunk, one or self._maps(chunk, None), grad_matrices, gradients)

    def _last_statistics(self, matrices: Tensor, updates: RunningUpdates) -> Statistics:
        """Return what the projections, ``[n, P_out, C_out]``, are normalised by; kept for the backward pass."""
        context, group = self.context, self.group
        eps = [candidate.project.norm.eps for candidate in group.candidates]
        mean, variance, inverse = Moments.of(matrices).join(eps[0]).unbind()
        if context.joint_out is not None:
            mean, variance = context.joint_out.moments(mean, variance)
            inverse = (variance + eps[0]).rsqrt()
        for index, candidate in enumerate(group.candidates):
            unit = candidate.project
            if context.plan.use_batch_stats[unit]:
                if eps[index] != eps[0]:
                    inverse[index] = (variance[index] + eps[index]).rsqrt()
                updates.add(unit.norm, slice(None), mean[index], variance[index], context.pixels_out)
            else:
                mean[index], variance[index] = running_statistics(unit.norm)
                inverse[index] = (variance[index] + eps[index]).rsqrt()
        statistics = Statistics(mean, variance, inverse, True, eps[0])
        put_statistics(context.tape, statistics, "last", self.number)
        return statistics

    def _matrices(self, updates: RunningUpdates | None) -> tuple[Tensor, list[_Maps | None]]:
        """Return the candidates' projections, ``[n, P_out, C_out]``; without ``updates``, all hidden maps too."""
        context, group = self.context, self.group
        places = {candidate.index: place for place, candidate in enumerate(group.candidates)}
        size = (len(places), context.shape_out.pixels, group.candidates[0].project.channels)
        matrices = None if updates is None else context.tape.room("projections", self.number)
        if matrices is None:
            matrices = context.inputs.new_empty(size)
        computed: list[_Maps | None] = []
        begun: set[int] = set()
        for chunk, segments in enumerate(group.chunks):
            maps = self._maps(chunk, updates)
            activated = maps.activated()
            for segment in segments:
                place = places[segment.candidate.index]
                part, kernels = activated[:, segment.columns], self._projection(segment).t()
                if place in begun:
                    matrices[place].addmm_(part, kernels)
                else:
                    torch.mm(part, kernels, out=matrices[place])
                    begun.add(place)
            if updates is not None and context.policy.hidden and (group.direct or group.expansion is not None):
                context.tape.put(maps.raw, "hidden", self.number, chunk)
            if updates is None:
                computed.append(maps)
        return matrices, computed

    def _geometry(self) -> depthwise.Geometry:
        shape, conv = self.context.shape, self.group.conv
        return depthwise.Geometry(
            shape.count, shape.height, shape.width, conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        )

    @property
    def _has_relu(self) -> bool:
        return self.group.direct or self.group.expansion is not None

    def _maps(self, chunk: int, updates: RunningUpdates | None) -> _Maps:
        """Compute a chunk's hidden maps: in the forward pass with ``updates``, else from what is on the tape."""
        context, group = self.context, self.group
        segments = group.chunks[chunk]
        raw = context.tape.get("hidden", self.number, chunk)
        room = context.tape.room("hidden", self.number, chunk)
        raw_statistics = None
        if group.direct:
            if raw is None:
                raw = multiply(context.inputs, self._expansion(segments).t(), out=room)
            eps = segments[0].candidate.unit("expand").norm.eps
            moments = None if updates is None else _moments(raw, eps)
            raw_statistics = self._statistics("expand", chunk, raw, updates, moments)
            affine = self._expansion_affine(segments)
            source = normalize_relu(raw, raw_statistics.mean, raw_statistics.inverse_deviation, *affine)
        elif group.expansion is None:
            raw = source = context.inputs
        else:
            if raw is None:
                raw = context.folded[group.expansion].before_relu(group.rows(chunk), room)
            source = raw
        scale, shift = self._affine(chunk)
        taps = context.tape.get("taps", self.number, chunk)
        if taps is None:
            taps = depthwise.taps_outermost(self._kernels(segments))
            context.tape.put(taps, "taps", self.number, chunk)
        convolved, parts = depthwise.forward(
            source, taps, self._geometry(), relu=self._has_relu, moments=updates is not None and group.use_batch_stats
        )
        joined = None
        if parts is not None:
            mean, variance, inverse = parts.join(group.eps).unbind()
            joined = mean, variance, inverse
        statistics = self._statistics("depthwise", chunk, convolved, updates, joined)
        return _Maps(raw, raw_statistics, source, convolved, statistics, taps, scale, shift)

    def _maps_backward(self, chunk: int, maps: _Maps, grad_matrices: Tensor, gradients: Gradients) -> None:
        context, group = self.context, self.group
        segments, geometry, statistics = group.chunks[chunk], self._geometry(), maps.statistics
        places = {candidate.index: place for place, candidate in enumerate(group.candidates)}
        grad = grad_matrices.new_empty(grad_matrices.shape[1], width(segments))
        activated = maps.activated() if gradients.of_parameters else None
        for segment in segments:
            grad_matrix = grad_matrices[places[segment.candidate.index]]
            torch.mm(grad_matrix, self._projection(segment), out=grad[:, segment.columns])
            buffer = gradients.parameters[segment.candidate.project.slot]
            if activated is not None and buffer is not None:
                matrix = buffer.flatten(1)  # [C_out, hidden, 1, 1] -> [C_out, hidden]
                correlate(matrix[:, segment.channels], grad_matrix, activated[:, segment.columns])
        del activated
        grad_scale, grad_shift = normalize_relu_gradient_(
            grad,
            maps.convolved,
            statistics.mean,
            statistics.inverse_deviation,
            maps.scale,
            maps.shift,
            maps.scale,
            use_batch_stats=statistics.use_batch_stats,
            joint_means=None if statistics.joint is None else statistics.joint.means,
        )
        if gradients.of_parameters:
            grad_kernels = depthwise.grad_weights(grad, maps.source, geometry, relu=self._has_relu)
            for s in segments:
                for offset, part in enumerate((grad_kernels, grad_scale, grad_shift)):
                    buffer = gradients.parameters[s.candidate.depthwise.slot + offset]
                    if buffer is not None:
                        gradients.put_later(buffer[s.channels], part[s.columns])
        if not self._has_relu and not gradients.of_input:
            return
        grad_source, sums = depthwise.grad_x(
            grad, maps.taps, maps.source if self._has_relu else None, geometry, sums=group.expansion is not None
        )
        del grad
        if not self._has_relu:
            gradients.input += grad_source
        elif group.expansion is None:
            self._direct_backward(segments, maps.raw, maps.raw_statistics, grad_source, gradients)
        else:
            rows = group.rows(chunk)
            expansion = gradients.expansions[group.expansion]
            inner = None
            if expansion.needs_inner:
                inner = inner_products(statistics, maps.scale, grad_scale, grad_shift)
            expansion.add(rows, grad_source, inner, sums)
            if gradients.of_input:
                folded = context.folded[group.expansion].folded[rows]
                gradients.input = add_product(gradients.input, grad_source, folded)


def _moments(matrix: Tensor, eps: float) -> ColumnMoments:
    """Return the moments of the columns of ``[P, C]``."""
    mean, variance, inverse = Moments.of(matrix[None]).join(eps)[:, 0].unbind()
    return mean, variance, inverse


class TritonDensePass(DensePass):
    """A dense candidate in one call, on a GPU; see :class:`DensePass`."""

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidate's weighted output to ``output``."""
        context, unit = self.context, self.candidate.unit
        convolved = self._convolved()
        moments = _moments(convolved, unit.norm.eps) if context.plan.use_batch_stats[unit] else None
        statistics = context.new_statistics(unit, convolved, updates, moments)
        activated = normalize_relu(
            convolved, statistics.mean, statistics.inverse_deviation, context.scale(unit), context.shift(unit)
        )
        output.total.addcmul_(activated, context.weight_of[self.candidate.index])
        context.keep_projection(self.candidate.index, convolved)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidate's part to ``gradients``."""
        context, unit, index = self.context, self.candidate.unit, self.candidate.index
        convolved = context.tape.get("projection", index)
        if convolved is None:
            convolved = self._convolved()
        statistics = context.saved_statistics(unit)
        grad = gradients.output.clone(memory_format=torch.contiguous_format)
        grad_scale, grad_shift = normalize_relu_gradient_(
            grad,
            convolved,
            statistics.mean,
            statistics.inverse_deviation,
            context.scale(unit),
            context.shift(unit),
            context.weighted_scales[index],
            use_batch_stats=statistics.use_batch_stats,
            joint_means=None if statistics.joint is None else statistics.joint.means,
        )
        gradients.last[index] = grad_scale, grad_shift
        if gradients.of_input or gradients.of_parameters:
            self._through_convolution(grad, gradients)
