"""What the forward and the backward pass of one call have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hitdet_nni.search.fused.batch_norm import (
    RunningUpdates,
    Statistics,
    batch_moments,
    running_statistics,
    statistics_type,
)
from hitdet_nni.search.fused.expansion import ExpansionGradient, FoldedExpansion
from hitdet_nni.search.fused.layout import MapShape
from hitdet_nni.search.fused.plan import ConvNorm, Plan
from hitdet_nni.search.fused.saving import Kept, Tape


@dataclass(frozen=True)
class Call:
    """One call of a mixed layer.

    Attributes:
        plan: What is computed together.
        kept: What is kept for the backward pass.
        parameters: Parameters of all candidates, by slot.
        weights: Weights of the candidates, scalars.
        inputs: The input as a matrix ``[P, C]``, of the type that products are computed in.
        shape: Size of the input's maps.
        shape_out: Size of the output's maps.
        folded: The plan's expansions, folded.
        tape: Tensors for the backward pass.
        room: In a forward pass that keeps the projections, where they go, ``[candidates, P_out, C_out]``: one tensor,
            as many that outlive the maps between which they were made would leave the memory in pieces.
    """

    plan: Plan
    kept: Kept
    parameters: Sequence[Tensor]
    weights: Sequence[Tensor]
    inputs: Tensor
    shape: MapShape
    shape_out: MapShape
    folded: Sequence[FoldedExpansion]
    tape: Tape
    room: Tensor | None = None

    @property
    def compute(self) -> torch.dtype:
        """Type of maps and products."""
        return self.inputs.dtype

    def kernels(self, unit: ConvNorm) -> Tensor:
        """Kernels of a convolution, shaped as :meth:`ConvNorm.kernels` gives them, in the type of the maps."""
        return unit.kernels(self.parameters).to(self.compute)

    def scale(self, unit: ConvNorm) -> Tensor:
        """Scale of a normalisation, ``[C]``, in the type of statistics."""
        return unit.scale(self.parameters).to(statistics_type(self.compute))

    def shift(self, unit: ConvNorm) -> Tensor:
        """Shift of a normalisation, ``[C]``, in the type of statistics."""
        return unit.shift(self.parameters).to(statistics_type(self.compute))

    def new_statistics(self, unit: ConvNorm, matrix: Tensor, updates: RunningUpdates) -> Statistics:
        """Statistics that normalise the output of a convolution, ``[P, C]``; kept for the backward pass."""
        by_batch = self.plan.by_batch[unit]
        if by_batch:
            mean, variance = batch_moments(matrix)
            updates.add(unit.norm, slice(None), mean, variance, len(matrix))
        else:
            mean, variance = (one.clone() for one in running_statistics(unit.norm))
        self.tape.put(mean, "mean", unit.slot)
        self.tape.put(variance, "variance", unit.slot)
        return Statistics(mean, variance, by_batch, unit.norm.eps)

    def kept_statistics(self, unit: ConvNorm) -> Statistics:
        """What :meth:`new_statistics` returned in the forward pass."""
        mean, variance = self.tape["mean", unit.slot], self.tape["variance", unit.slot]
        return Statistics(mean, variance, self.plan.by_batch[unit], unit.norm.eps)


@dataclass
class Output:
    """The weighted sum while it is accumulated.

    Attributes:
        total: ``[P_out, C_out]``.
        constant: ``[C_out]``, to be added to every pixel.
        residual: Sum of the weights of the candidates that add the input, or ``None``.
    """

    total: Tensor
    constant: Tensor
    residual: Tensor | None = None


@dataclass
class Gradients:
    """What the backward pass computes.

    Attributes:
        output: Gradient by the output, a matrix ``[P_out, C_out]``.
        of_input: Whether the gradient by the input is wanted.
        of_parameters: Whether gradients by the candidates' parameters are wanted.
        input: Gradient by the input as far as known, ``[P, C]``, in single precision at least.
        input_products: Sum of the products of ``output`` and the input, where a candidate adds the input.
        weights: Gradient by each candidate's weight.
        parameters: Gradient by each parameter, by slot.
        expansions: Of the stacked expansions.
    """

    output: Tensor
    of_input: bool
    of_parameters: bool
    input: Tensor
    input_products: Tensor | None
    weights: list[Tensor]
    parameters: list[Tensor | None]
    expansions: list[ExpansionGradient] = field(default_factory=list)

    def of_norm(self, unit: ConvNorm, by_scale: Tensor, by_shift: Tensor) -> None:
        """Write the gradients of a normalisation's scale and shift, ``[C]`` each, to their slots."""
        if self.of_parameters:
            self.parameters[unit.slot + 1] = by_scale
            self.parameters[unit.slot + 2] = by_shift
