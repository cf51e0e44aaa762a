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

from hitdet_nni.kernels import depthwise
from hitdet_nni.kernels.products import add_product, by_columns, correlate, multiply
from hitdet_nni.nas.fused.batch_norm import (
    ColumnMoments,
    RunningUpdates,
    Statistics,
    column_moments,
    normalize,
    normalize_gradient,
    running_statistics,
)
from hitdet_nni.nas.fused.forward_context import ForwardContext, Gradients, Output, put_statistics, saved_statistics
from hitdet_nni.nas.fused.plan import PARAMETERS, BlockPart, Group, Segment


@dataclass(frozen=True)
class _Hidden:
    """The maps of a chunk: before and behind the depthwise convolution, and behind its normalisation and ReLU.

    ``raw`` is the expansion before its normalisation, where that is computed; ``kernels`` and ``scale`` belong to the
    depthwise convolution.
    """

    raw: Tensor
    raw_statistics: Statistics | None
    expanded: Tensor
    convolved: Tensor
    activated: Tensor
    statistics: Statistics
    kernels: Tensor
    scale: Tensor


_ByProjection = dict[int, tuple[Tensor, Tensor | None]]
"""Gradient by each candidate's projection, ``[P, C_out]``, by its index; a second time for correlations, if any."""


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return the concatenation along a dimension, other shapes being equal; a tensor itself if it is alone."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Return some rows of a tensor ``[N, ...]``; the tensor itself where they are all, which saves a call."""
    return tensor if tensor.shape[0] == rows.stop - rows.start else tensor[rows]


def allocate_buffers(groups: Sequence[Group], parameters: Sequence[Tensor], gradients: Gradients) -> None:
    """Allocate buffers for those gradients of parameters that chunks fill part by part.

    It is one tensor: many that outlive the maps between which they were made would leave the memory in pieces.

    Args:
        groups: The groups of chunks.
        parameters: Parameters of all candidates, by slot; a gradient has its parameter's shape.
        gradients: Takes the buffers.
    """
    slots: list[int] = []
    for group in groups:
        for candidate in group.candidates:
            filled = [candidate.unit("expand").slot] if group.direct else []
            slots += [slot + offset for slot in (*filled, candidate.depthwise.slot) for offset in range(PARAMETERS)]
            slots.append(candidate.project.slot)
    if slots:
        sizes = [parameters[slot].numel() for slot in slots]
        buffer = parameters[slots[0]].new_empty(sum(sizes))
        for slot, part in zip(slots, torch.split(buffer, sizes), strict=True):
            gradients.parameters[slot] = part.view(parameters[slot].shape)  # [numel] -> [*shape]


class GroupPass:
    """A group of depthwise candidates in one call.

    Args:
        group: The group.
        number: Its number in the plan.
        context: What the passes of the call share.
    """

    def __init__(self, group: Group, number: int, context: ForwardContext) -> None:
        self.group = group
        self.number = number
        self.context = context

    def forward(self, output: Output, updates: RunningUpdates) -> None:
        """Add the candidates' weighted outputs, less what is the same at all pixels, to ``output``."""
        context, group = self.context, self.group
        projections, _ = self._project(updates)
        for candidate in group.candidates:
            matrix = projections[candidate.index]
            statistics = context.new_statistics(candidate.project, matrix, updates)
            slope = context.weighted_scales[candidate.index] * statistics.inverse_deviation
            output.total.addcmul_(matrix, slope)
            output.last[candidate.index] = slope, statistics.mean
            context.keep_projection(candidate.index, matrix)

    def backward(self, gradients: Gradients) -> None:
        """Add the candidates' part to ``gradients``."""
        context, group = self.context, self.group
        hidden: list[_Hidden | None] = [None] * len(group.chunks)
        if context.policy.projections:
            projections = {
                candidate.index: context.tape["projection", candidate.index] for candidate in group.candidates
            }
        else:
            projections, hidden = self._project(None)
        further = gradients.of_input or gradients.of_parameters
        grad_projection: _ByProjection = {}
        for candidate in group.candidates:
            grad_matrix, grad_scale, grad_shift = normalize_gradient(
                gradients.output,
                projections.pop(candidate.index),
                context.saved_statistics(candidate.project),
                context.weighted_scales[candidate.index],
                of_input=further,
            )
            columns = by_columns(grad_matrix) if gradients.of_parameters else None
            grad_projection[candidate.index] = grad_matrix, columns
            gradients.last[candidate.index] = grad_scale, grad_shift
        if not further:
            return
        for chunk in range(len(group.chunks)):
            one, hidden[chunk] = hidden[chunk], None
            self._chunk_backward(chunk, one or self._hidden(chunk, None), grad_projection, gradients)

    def _project(self, updates: RunningUpdates | None) -> tuple[dict[int, Tensor], list[_Hidden | None]]:
        """Return the projections of the candidates by index; where there are no ``updates``, all hidden maps too."""
        context = self.context
        projections: dict[int, Tensor] = {}
        computed: list[_Hidden | None] = []
        for chunk, segments in enumerate(self.group.chunks):
            hidden = self._hidden(chunk, updates)
            for segment in segments:
                index = segment.candidate.index
                part, kernels = hidden.activated[:, segment.columns], self._projection(segment).t()
                known = projections.get(index)
                projections[index] = multiply(part, kernels) if known is None else add_product(known, part, kernels)
            if (
                updates is not None
                and context.policy.hidden
                and (self.group.direct or self.group.expansion is not None)
            ):
                context.tape.put(hidden.raw, "hidden", self.number, chunk)
            if updates is None:
                computed.append(hidden)
        return projections, computed

    def _projection(self, segment: Segment) -> Tensor:
        """Return the columns of a projection that belong to a segment, ``[C_out, channels]``."""
        kernels = self.context.kernels(segment.candidate.project).flatten(1)  # [C_out, hidden, 1, 1] -> [C_out, hidden]
        return kernels[:, segment.channels]

    def _hidden(self, chunk: int, updates: RunningUpdates | None) -> _Hidden:
        """Compute a chunk's hidden maps: in the forward pass with ``updates``, else from what is on the tape."""
        context, group = self.context, self.group
        segments, conv = group.chunks[chunk], group.conv
        raw = context.tape.get("hidden", self.number, chunk)
        raw_statistics = None
        if group.direct:
            if raw is None:
                raw = multiply(context.inputs, self._expansion(segments).t())
            raw_statistics = self._statistics("expand", chunk, raw, updates)
            expanded = normalize(raw, raw_statistics, *self._expansion_affine(segments)).relu_()
        else:
            if raw is None:
                raw = context.inputs
                if group.expansion is not None:
                    raw = context.folded[group.expansion].activations(group.rows(chunk))
            expanded = raw
        kernels, (scale, shift) = self._kernels(segments), self._affine(chunk)
        convolved = context.shape_out.matrix(
            depthwise.convolve(context.shape.images(expanded), kernels, conv.stride[0], conv.dilation[0])
        )
        statistics = self._statistics("depthwise", chunk, convolved, updates)
        activated = normalize(convolved, statistics, scale, shift).relu_()
        return _Hidden(raw, raw_statistics, expanded, convolved, activated, statistics, kernels, scale)

    def _kernels(self, segments: Sequence[Segment]) -> Tensor:
        """Return the depthwise kernels of a chunk, ``[channels, 1, k, k]``."""
        return joined([rows_of(self.context.kernels(s.candidate.depthwise), s.channels) for s in segments])

    def _expansion(self, segments: Sequence[Segment]) -> Tensor:
        """Return the kernels of a chunk's expansion, ``[channels, C]``."""
        kernels = [self.context.kernels(segment.candidate.unit("expand")) for segment in segments]
        matrices = [one.flatten(1) for one in kernels]  # [hidden, C, 1, 1] -> [hidden, C]
        return joined([rows_of(one, segment.channels) for one, segment in zip(matrices, segments, strict=True)])

    def _affine(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Return the scale and shift behind a chunk's depthwise convolution, ``[channels]`` each."""
        scales, shifts = self.context.depthwise_affine
        columns = self.group.columns(chunk)
        return scales[columns], shifts[columns]

    def _expansion_affine(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """Return the scale and shift behind the expansion of a chunk's segments, ``[channels]`` each."""
        units = [(segment.candidate.unit("expand"), segment.channels) for segment in segments]
        scale = joined([rows_of(self.context.scale(unit), channels) for unit, channels in units])
        return scale, joined([rows_of(self.context.shift(unit), channels) for unit, channels in units])

    def _statistics(
        self,
        part: BlockPart,
        chunk: int,
        matrix: Tensor,
        updates: RunningUpdates | None,
        moments: ColumnMoments | None = None,
    ) -> Statistics:
        """Return what a chunk is normalised by behind its expansion or depthwise convolution.

        ``moments`` are those of the columns of ``matrix`` where they are known.
        """
        group, tape, segments = self.group, self.context.tape, self.group.chunks[chunk]
        norms = [s.candidate.unit(part).norm for s in segments]
        use_batch_stats = part == "expand" or group.use_batch_stats
        joint = self.context.joint if part == "expand" else self.context.joint_out
        if updates is None:
            return saved_statistics(tape, use_batch_stats, norms[0].eps, part, self.number, chunk, joint=joint)
        inverse = None
        if use_batch_stats:
            mean, variance, inverse = column_moments(matrix, moments, joint)
            pixels = self.context.pixels if part == "expand" else self.context.pixels_out
            for norm, segment in zip(norms, segments, strict=True):
                columns = segment.columns
                updates.add(norm, segment.channels, mean[columns], variance[columns], pixels)
        else:
            running = [(running_statistics(n), s.channels) for n, s in zip(norms, segments, strict=True)]
            mean = torch.cat([one[channels] for (one, _), channels in running])
            variance = torch.cat([one[channels] for (_, one), channels in running])
        statistics = Statistics.of(mean, variance, use_batch_stats, norms[0].eps, joint, inverse)
        put_statistics(tape, statistics, part, self.number, chunk)
        return statistics

    def _chunk_backward(
        self, chunk: int, hidden: _Hidden, grad_projection: _ByProjection, gradients: Gradients
    ) -> None:
        context, group = self.context, self.group
        segments, conv = group.chunks[chunk], group.conv
        parts = []
        for segment in segments:
            grad_matrix, columns = grad_projection[segment.candidate.index]
            parts.append(multiply(grad_matrix, self._projection(segment)))
            buffer = gradients.parameters[segment.candidate.project.slot]
            if columns is not None and buffer is not None:
                matrix = buffer.flatten(1)  # [C_out, hidden, 1, 1] -> [C_out, hidden]
                correlate(matrix[:, segment.channels], columns, hidden.activated[:, segment.columns])
        grad = joined(parts, 1)
        mask_(grad, hidden.activated)
        grad_convolved, grad_scale, grad_shift = normalize_gradient(
            grad, hidden.convolved, hidden.statistics, hidden.scale, of_input=True
        )
        maps, source, kernels = (
            context.shape_out.images(grad_convolved),
            context.shape.images(hidden.expanded),
            hidden.kernels,
        )
        if gradients.of_parameters:
            grad_kernels = depthwise.weight_gradient(maps, source, kernels, conv.stride[0], conv.dilation[0])
            for s in segments:
                for offset, part in enumerate((grad_kernels, grad_scale, grad_shift)):
                    buffer = gradients.parameters[s.candidate.depthwise.slot + offset]
                    if buffer is not None:
                        buffer[s.channels] = part[s.columns]
        if group.expansion is None and not group.direct and not gradients.of_input:
            return
        grad_expanded = context.shape.matrix(
            depthwise.input_gradient(maps, source, kernels, conv.stride[0], conv.dilation[0])
        )
        if group.expansion is None and not group.direct:
            gradients.input += grad_expanded
            return
        mask_(grad_expanded, hidden.expanded)
        if group.expansion is None:
            self._direct_backward(segments, hidden.raw, hidden.raw_statistics, grad_expanded, gradients)
            return
        rows = group.rows(chunk)
        expansion = gradients.expansions[group.expansion]
        inner = None
        if expansion.needs_inner:
            inner = inner_products(hidden.statistics, hidden.scale, grad_scale, grad_shift)
        expansion.add(rows, grad_expanded, inner)
        if gradients.of_input:
            folded = context.folded[group.expansion].folded[rows]
            gradients.input = add_product(gradients.input, grad_expanded, folded)

    def _direct_backward(
        self,
        segments: Sequence[Segment],
        raw: Tensor,
        statistics: Statistics | None,
        grad: Tensor,
        gradients: Gradients,
    ) -> None:
        """Take the gradient by the normalised expansion to those by its parameters and the input."""
        if statistics is None:
            raise ValueError("the expansion before its normalisation has not been computed")
        scale, _ = self._expansion_affine(segments)
        grad_raw, grad_scale, grad_shift = normalize_gradient(grad, raw, statistics, scale, of_input=True)
        if gradients.of_parameters:
            for s in segments:
                slot = s.candidate.unit("expand").slot
                grad_kernels, buffer_scale, buffer_shift = (gradients.parameters[slot + offset] for offset in range(3))
                if grad_kernels is not None and buffer_scale is not None and buffer_shift is not None:
                    matrix = grad_kernels.flatten(1)  # [hidden, C, 1, 1] -> [hidden, C]
                    correlate(matrix[s.channels], grad_raw[:, s.columns], self.context.inputs)
                    buffer_scale[s.channels] = grad_scale[s.columns]
                    buffer_shift[s.channels] = grad_shift[s.columns]
        if gradients.of_input:
            gradients.input = add_product(gradients.input, grad_raw, self._expansion(segments))


def mask_(grad: Tensor, activated: Tensor) -> None:
    """Set a gradient to zero, in place, where a ReLU gave zero; both of one shape."""
    torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


def inner_products(statistics: Statistics, scale: Tensor, grad_scale: Tensor, grad_shift: Tensor) -> Tensor:
    """Sum over pixels of a depthwise convolution's output times the gradient by it, ``[channels]``.

    Since the convolution is linear in each channel, the same sum for its input is equal. Behind a normalisation by the
    batch's statistics it would vanish, as scaling a channel changes nothing, were it not for eps; where they are those
    of all processes, that holds of the sum over these, to which the result is this one's share.
    """
    if statistics.use_batch_stats:
        return scale * grad_scale * statistics.eps * statistics.inverse_deviation.square()
    inverse = statistics.inverse_deviation
    return scale * (grad_scale + statistics.mean * inverse * grad_shift)
