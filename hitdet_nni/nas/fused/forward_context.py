"""What the forward and the backward pass of one call have in common."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hitdet_nni.engine.joint_statistics import Joint
from hitdet_nni.kernels.layout import MapShape, in_type
from hitdet_nni.nas.fused.batch_norm import (
    ColumnMoments,
    RunningUpdates,
    Statistics,
    column_moments,
    running_statistics,
)
from hitdet_nni.nas.fused.expansion import ExpansionGradient, FoldedExpansion
from hitdet_nni.nas.fused.plan import Candidate, ConvNorm, Plan
from hitdet_nni.nas.fused.save_policy import SavePolicy, Tape

KEPT_STATISTICS = ("mean", "variance", "inverse_deviation")


def put_statistics(tape: Tape, statistics: Statistics, *key: Hashable) -> None:
    """Keep the tensors of some statistics, ``[C]`` each, for the backward pass."""
    for name in KEPT_STATISTICS:
        tape.put(getattr(statistics, name), name, *key)


def saved_statistics(
    tape: Tape, use_batch_stats: bool, eps: float, *key: Hashable, joint: Joint | None = None
) -> Statistics:
    """Return the statistics that :func:`put_statistics` kept under a key, ``[C]`` each."""
    mean, variance, inverse_deviation = (tape[(name, *key)] for name in KEPT_STATISTICS)
    return Statistics(mean, variance, inverse_deviation, use_batch_stats, eps, joint)


@dataclass(frozen=True)
class ForwardContext:
    """What the passes of one call of a mixed layer share.

    Attributes:
        plan: What is computed together.
        policy: What is kept for the backward pass.
        parameters: Parameters of all candidates, by slot.
        weights: Weights of the candidates, ``[n]``, in the type of statistics.
        given: The input as a matrix ``[P, C]``, of its own type.
        inputs: The same, of the type that products are computed in.
        shape: Size of the input's maps.
        shape_out: Size of the output's maps.
        folded: The plan's expansions, folded.
        tape: Tensors for the backward pass.
        buffer: In a forward pass on a CPU that keeps the projections, where they go, ``[candidates, P_out, C_out]``:
            one tensor, as many that outlive the maps between which they were made would leave the memory in pieces.
        joint: Pixels of the input in all processes, where these share statistics.
        joint_out: Likewise of the output.
    """

    plan: Plan
    policy: SavePolicy
    parameters: Sequence[Tensor]
    weights: Tensor
    given: Tensor
    inputs: Tensor
    shape: MapShape
    shape_out: MapShape
    folded: Sequence[FoldedExpansion]
    tape: Tape
    buffer: Tensor | None = None
    joint: Joint | None = None
    joint_out: Joint | None = None

    @property
    def compute(self) -> torch.dtype:
        """Type of maps and products."""
        return self.inputs.dtype

    @cached_property
    def weight_of(self) -> Sequence[Tensor]:
        """Weight of each candidate, scalars."""
        return self.weights.unbind()

    @cached_property
    def weighted_scales(self) -> Sequence[Tensor]:
        """Scale of each candidate's last normalisation times the candidate's weight, ``[C_out]`` each."""
        return self.weighted_scale_rows.unbind()

    @cached_property
    def depthwise_affine(self) -> tuple[Tensor, Tensor]:
        """Scales and shifts behind the depthwise convolutions, ``[channels]`` each, in the order of the groups."""
        units = [candidate.depthwise for group in self.plan.groups for candidate in group.candidates]
        return torch.cat([self.scale(unit) for unit in units]), torch.cat([self.shift(unit) for unit in units])

    def of_candidates(self, rows: Tensor, candidates: Sequence[Candidate]) -> Tensor:
        """Return the rows of some candidates, of ``[n, ...]``."""
        indices = [candidate.index for candidate in candidates]
        first, last = indices[0], indices[-1]
        if indices == list(range(first, last + 1)):
            return rows[first : last + 1]
        return torch.stack([rows[index] for index in indices])

    @cached_property
    def weighted_scale_rows(self) -> Tensor:
        """Scales of the candidates' last normalisations times their weights, ``[n, C_out]``."""
        return self.weights[:, None] * self.last_scales

    @cached_property
    def residual_weight(self) -> Tensor:
        """Sum of the weights of the candidates that add the input, a scalar."""
        return self.weights @ self.plan.residual.to(self.weights.dtype)

    @cached_property
    def last_scales(self) -> Tensor:
        """Scales of the candidates' last normalisations, ``[n, C_out]``."""
        return torch.stack([self.scale(unit) for unit in self.plan.last])

    @cached_property
    def last_shifts(self) -> Tensor:
        """Shifts of the candidates' last normalisations, ``[n, C_out]``."""
        return torch.stack([self.shift(unit) for unit in self.plan.last])

    def kernels(self, unit: ConvNorm) -> Tensor:
        """Return a convolution's kernels, shaped as by :meth:`ConvNorm.kernels`, in the type of the maps."""
        return in_type(unit.kernels(self.parameters), self.inputs.dtype)

    def scale(self, unit: ConvNorm) -> Tensor:
        """Return the scale of a normalisation, ``[C]``, in the type of statistics."""
        return in_type(unit.scale(self.parameters), self.weights.dtype)

    def shift(self, unit: ConvNorm) -> Tensor:
        """Return the shift of a normalisation, ``[C]``, in the type of statistics."""
        return in_type(unit.shift(self.parameters), self.weights.dtype)

    def keep_projection(self, index: int, matrix: Tensor) -> None:
        """Keep the map before a candidate's last normalisation, ``[P_out, C_out]``, if the mode keeps it."""
        if self.buffer is not None:
            self.tape.put(self.buffer[index].copy_(matrix), "projection", index)
        elif self.policy.projections:
            self.tape.put(matrix, "projection", index)

    def new_statistics(
        self, unit: ConvNorm, matrix: Tensor, updates: RunningUpdates, moments: ColumnMoments | None = None
    ) -> Statistics:
        """Return the statistics that normalise the output of a convolution, ``[P, C]``; kept for the backward pass.

        ``moments`` are those of the output's columns where they are known.
        """
        use_batch_stats, inverse = self.plan.use_batch_stats[unit], None
        if use_batch_stats:
            mean, variance, inverse = column_moments(matrix, moments, self.joint_out)
            updates.add(unit.norm, slice(None), mean, variance, self.pixels_out)
        else:
            mean, variance = (one.clone() for one in running_statistics(unit.norm))
        statistics = Statistics.of(mean, variance, use_batch_stats, unit.norm.eps, self.joint_out, inverse)
        put_statistics(self.tape, statistics, unit.slot)
        return statistics

    def saved_statistics(self, unit: ConvNorm) -> Statistics:
        """Return what :meth:`new_statistics` returned in the forward pass."""
        return saved_statistics(
            self.tape, self.plan.use_batch_stats[unit], unit.norm.eps, unit.slot, joint=self.joint_out
        )

    @property
    def pixels(self) -> int | Tensor:
        """Pixels of the input that statistics are taken of; a scalar tensor where several processes share them."""
        return self.shape.pixels if self.joint is None else self.joint.count

    @property
    def pixels_out(self) -> int | Tensor:
        """Pixels of the output that statistics are taken of; a scalar tensor where several processes share them."""
        return self.shape_out.pixels if self.joint_out is None else self.joint_out.count


@dataclass
class Output:
    """The weighted sum while it is accumulated.

    Attributes:
        total: ``[P_out, C_out]``.
        last: What the last normalisations of the depthwise candidates multiplied by, and the means that they are to
            take off, ``[C_out]`` each, by the candidates' indices; ``None`` where these have been taken off.
    """

    total: Tensor
    last: dict[int, tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    def add_constant(self, context: ForwardContext) -> None:
        """Add to every pixel what the last normalisations of the depthwise candidates add."""
        if not self.last:
            return
        weights = torch.stack([context.weight_of[index] for index in self.last])
        shifts = torch.stack([context.shift(context.plan.last[index]) for index in self.last])
        constant = weights @ shifts
        due = [pair for pair in self.last.values() if pair is not None]
        if due:
            slopes, means = (torch.stack(part) for part in zip(*due, strict=True))
            constant = constant - (slopes * means).sum(0)
        self.total += constant


@dataclass
class Gradients:
    """What the backward pass computes.

    Attributes:
        output: Gradient by the output, a matrix ``[P_out, C_out]``.
        of_input: Whether the gradient by the input is wanted.
        of_parameters: Whether gradients by the candidates' parameters are wanted.
        input: Gradient by the input as far as known, ``[P, C]``, in single precision at least.
        input_products: Sum of the products of ``output`` and the input, where a candidate adds the input.
        last: Gradients by scale and shift of each candidate's last normalisation as if its weight were one, ``[C_out]``
            each, by the candidate's index.
        parameters: Gradient by each parameter, by slot.
        expansions: Of the stacked expansions.
    """

    output: Tensor
    of_input: bool
    of_parameters: bool
    input: Tensor
    input_products: Tensor | None
    parameters: list[Tensor | None]
    last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    expansions: list[ExpansionGradient] = field(default_factory=list)
    _copies: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))

    def put_later(self, place: Tensor, gradient: Tensor) -> None:
        """Let a gradient of any shape be copied to its place when all are known: many at once cost one start."""
        for known, new in zip(self._copies, (place, gradient), strict=True):
            known.append(new)

    def put_all(self) -> None:
        """Copy what is to be copied."""
        places, gradients = self._copies
        if places:
            torch._foreach_copy_(places, gradients)

    def finish_last(self, context: ForwardContext) -> Tensor:
        """Return the gradient by the candidates' weights, ``[n]``; the last normalisations' go to their slots."""
        pairs = [self.last[index] for index in range(len(context.plan.last))]
        grad_scales, grad_shifts = (torch.stack(part) for part in zip(*pairs, strict=True))
        grad_weights = (context.last_scales * grad_scales + context.last_shifts * grad_shifts).sum(1)
        if self.input_products is not None:
            grad_weights += context.plan.residual * self.input_products
        if self.of_parameters:
            weights = context.weights[:, None]
            for unit, *both in zip(
                context.plan.last, (weights * grad_scales).unbind(), (weights * grad_shifts).unbind(), strict=True
            ):
                self.parameters[unit.slot + 1], self.parameters[unit.slot + 2] = both
        return grad_weights
