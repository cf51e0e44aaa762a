"""Inverted residuals and separable blocks: forward and backward pass of a group of them, piece by piece.

Each piece of hidden channels runs through expansion, depthwise convolution and normalisation while it is in the cache;
only its contribution to the projections leaves it. The last normalisation, the candidate's weight and the sum over the
candidates are one multiplication by a number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hitdet_nni.search.fused import depthwise
from hitdet_nni.search.fused.batch_norm import (
    RunningUpdates,
    Statistics,
    batch_moments,
    normalize,
    normalize_gradient,
    running_statistics,
)
from hitdet_nni.search.fused.call import Call, Gradients, Output
from hitdet_nni.search.fused.expansion import multiply_into
from hitdet_nni.search.fused.layout import matrix_of
from hitdet_nni.search.fused.plan import Group, Segment


@dataclass(frozen=True)
class _Hidden:
    """The maps of a chunk: before and behind the depthwise convolution, and behind its normalisation and ReLU."""

    expanded: Tensor
    convolved: Tensor
    activated: Tensor
    statistics: Statistics


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenation along the first dimension; the tensor itself where it is the only one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


class GroupPass:
    """A group of depthwise candidates in one call.

    Args:
        group: The group.
        number: Its number in the plan.
        call: The call.
    """

    def __init__(self, group: Group, number: int, call: Call) -> None:
        self.group = group
        self.number = number
        self.call = call

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidates' weighted outputs, less what is the same at all pixels, to ``output``."""
        call, group = self.call, self.group
        projections, _ = self._project(updates)
        for candidate in group.candidates:
            matrix, unit, weight = projections[candidate.index], candidate.project, call.weights[candidate.index]
            statistics = call.new_statistics(unit, matrix, updates)
            slope = weight * call.scale(unit) * statistics.inverse_deviation
            output.total.addcmul_(matrix, slope)
            output.constant += weight * call.shift(unit) - slope * statistics.mean
            if candidate.residual:
                output.residual = weight if output.residual is None else output.residual + weight
            if call.kept.projections:
                call.tape.put(matrix, "projection", candidate.index)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidates' part to ``gradients``."""
        call, group = self.call, self.group
        hidden: list[_Hidden | None] = [None] * len(group.chunks)
        if call.kept.projections:
            projections = {candidate.index: call.tape["projection", candidate.index] for candidate in group.candidates}
        else:
            projections, hidden = self._project(None)
        further = gradients.of_input or gradients.of_parameters
        by_projection: dict[int, Tensor] = {}
        for candidate in group.candidates:
            unit, weight = candidate.project, call.weights[candidate.index]
            matrix, scale = projections.pop(candidate.index), call.scale(unit)
            by_matrix, by_scale, by_shift = normalize_gradient(
                gradients.output, matrix, call.kept_statistics(unit), weight * scale, of_input=further
            )
            by_weight = (scale * by_scale + call.shift(unit) * by_shift).sum()
            if candidate.residual and gradients.input_products is not None:
                by_weight = by_weight + gradients.input_products
            gradients.weights[candidate.index] = by_weight
            gradients.of_norm(unit, weight * by_scale, weight * by_shift)
            by_projection[candidate.index] = by_matrix
        if not further:
            return
        if gradients.of_parameters:
            self._allocate(gradients)
        for chunk in range(len(group.chunks)):
            one, hidden[chunk] = hidden[chunk], None
            self._chunk_backward(chunk, one or self._hidden(chunk, None), by_projection, gradients)

    def _project(self, updates: RunningUpdates | None) -> tuple[dict[int, Tensor], list[_Hidden | None]]:
        """Projections of the candidates by index; where there are no ``updates``, all hidden maps too."""
        call = self.call
        projections: dict[int, Tensor] = {}
        computed: list[_Hidden | None] = []
        for chunk, segments in enumerate(self.group.chunks):
            hidden = self._hidden(chunk, updates)
            for segment in segments:
                index = segment.candidate.index
                part, kernels = hidden.activated[:, segment.columns], self._projection(segment).t()
                if index in projections:
                    projections[index].addmm_(part, kernels)
                else:
                    projections[index] = torch.mm(part, kernels)
            if updates is not None and call.kept.hidden and self.group.expansion is not None:
                call.tape.put(hidden.expanded, "hidden", self.number, chunk)
            if updates is None:
                computed.append(hidden)
        return projections, computed

    def _projection(self, segment: Segment) -> Tensor:
        """Columns of a projection that belong to a segment, ``[C_out, channels]``."""
        return self.call.kernels(segment.candidate.project).flatten(1)[:, segment.channels]

    def _hidden(self, chunk: int, updates: RunningUpdates | None) -> _Hidden:
        """Compute a chunk's hidden maps: in the forward pass with ``updates``, else from what is on the tape."""
        call, group = self.call, self.group
        segments, conv = group.chunks[chunk], group.conv
        expanded = call.tape.get("hidden", self.number, chunk)
        if expanded is None:
            expanded = call.inputs
            if group.expansion is not None:
                expanded = call.folded[group.expansion].activations(group.rows(chunk))
        maps = depthwise.convolve(
            call.shape.images(expanded), self._kernels(segments), conv.stride[0], conv.dilation[0]
        )
        convolved = matrix_of(maps)
        statistics = self._statistics(chunk, convolved, updates)
        scale = joined([call.scale(s.candidate.depthwise)[s.channels] for s in segments])
        shift = joined([call.shift(s.candidate.depthwise)[s.channels] for s in segments])
        return _Hidden(expanded, convolved, normalize(convolved, statistics, scale, shift).relu_(), statistics)

    def _kernels(self, segments: Sequence[Segment]) -> Tensor:
        """Depthwise kernels of a chunk, ``[channels, 1, k, k]``."""
        return joined([self.call.kernels(s.candidate.depthwise)[s.channels] for s in segments])

    def _statistics(self, chunk: int, convolved: Tensor, updates: RunningUpdates | None) -> Statistics:
        group, tape = self.group, self.call.tape
        if updates is None:
            mean, variance = tape["hidden mean", self.number, chunk], tape["hidden variance", self.number, chunk]
            return Statistics(mean, variance, group.by_batch, group.eps)
        if group.by_batch:
            mean, variance = batch_moments(convolved)
            for segment in group.chunks[chunk]:
                norm, columns = segment.candidate.depthwise.norm, segment.columns
                updates.add(norm, segment.channels, mean[columns], variance[columns], len(convolved))
        else:
            running = [(running_statistics(s.candidate.depthwise.norm), s.channels) for s in group.chunks[chunk]]
            mean = torch.cat([one[channels] for (one, _), channels in running])
            variance = torch.cat([one[channels] for (_, one), channels in running])
        tape.put(mean, "hidden mean", self.number, chunk)
        tape.put(variance, "hidden variance", self.number, chunk)
        return Statistics(mean, variance, group.by_batch, group.eps)

    def _allocate(self, gradients: Gradients) -> None:
        """Make room for gradients that the chunks fill part by part."""
        for candidate in self.group.candidates:
            for unit in (candidate.depthwise, candidate.project):
                kernels = unit.kernels(self.call.parameters)
                gradients.parameters[unit.slot] = kernels.new_empty(kernels.shape)
            scale = candidate.depthwise.scale(self.call.parameters)
            gradients.of_norm(candidate.depthwise, torch.empty_like(scale), torch.empty_like(scale))

    def _chunk_backward(
        self, chunk: int, hidden: _Hidden, by_projection: dict[int, Tensor], gradients: Gradients
    ) -> None:
        call, group = self.call, self.group
        segments, conv = group.chunks[chunk], group.conv
        grad = torch.empty_like(hidden.activated)
        for segment in segments:
            by_matrix = by_projection[segment.candidate.index]
            torch.mm(by_matrix, self._projection(segment), out=grad[:, segment.columns])
            room = gradients.parameters[segment.candidate.project.slot]
            if gradients.of_parameters and room is not None:
                activated = hidden.activated[:, segment.columns]
                multiply_into(room.flatten(1)[:, segment.channels], by_matrix.t(), activated)
        mask_(grad, hidden.activated)
        scale = joined([call.scale(s.candidate.depthwise)[s.channels] for s in segments])
        by_convolved, by_scale, by_shift = normalize_gradient(
            grad, hidden.convolved, hidden.statistics, scale, of_input=True
        )
        maps, source = call.shape_out.images(by_convolved), call.shape.images(hidden.expanded)
        kernels = self._kernels(segments)
        if gradients.of_parameters:
            by_kernels = depthwise.weight_gradient(maps, source, kernels, conv.stride[0], conv.dilation[0])
            for s in segments:
                for offset, part in enumerate((by_kernels, by_scale, by_shift)):
                    room = gradients.parameters[s.candidate.depthwise.slot + offset]
                    if room is not None:
                        room[s.channels] = part[s.columns]
        if group.expansion is None and not gradients.of_input:
            return
        by_expanded = matrix_of(depthwise.input_gradient(maps, source, kernels, conv.stride[0], conv.dilation[0]))
        if group.expansion is None:
            gradients.input += by_expanded
            return
        mask_(by_expanded, hidden.expanded)
        rows = group.rows(chunk)
        inner = _inner(hidden.statistics, scale, by_scale, by_shift)
        gradients.expansions[group.expansion].add(rows, by_expanded, inner)
        if gradients.of_input:
            gradients.input.addmm_(by_expanded, call.folded[group.expansion].folded[rows])


def mask_(grad: Tensor, activated: Tensor) -> None:
    """Set a gradient to zero, in place, where a ReLU gave zero."""
    torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


def _inner(statistics: Statistics, scale: Tensor, by_scale: Tensor, by_shift: Tensor) -> Tensor:
    """Sum over pixels of a depthwise convolution's output times the gradient by it, ``[channels]``.

    Since the convolution is linear in each channel, the same sum for its input is equal. Behind a normalisation by the
    batch's statistics it would vanish, as scaling a channel changes nothing, were it not for eps.
    """
    if statistics.by_batch:
        return scale * by_scale * statistics.eps * statistics.inverse_deviation.square()
    inverse = statistics.inverse_deviation
    return scale * (by_scale + statistics.mean * inverse * by_shift)
