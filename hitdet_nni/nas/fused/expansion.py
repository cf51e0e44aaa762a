"""The 1x1 expansions of all inverted residuals, with their batch normalisation folded in.

An expansion is linear, so mean and variance of its output follow from those of its input: with
``centred = x - mean(x)`` and ``covariance = centred^T centred / P``, row k of ``weight @ centred^T`` has mean 0 and
variance ``weight[k] covariance weight[k]^T``. One product of the input with itself therefore serves all candidates, and
no expanded map before its normalisation is ever computed or kept (docs/fused.md derives the gradient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hitdet_nni.engine.joint_statistics import Joint, gathered, statistics_type, sums
from hitdet_nni.kernels.products import by_columns, correlate, multiply
from hitdet_nni.nas.fused.batch_norm import RunningUpdates, running_statistics
from hitdet_nni.nas.fused.plan import Expansion


def column_sums(matrix: Tensor) -> Tensor:
    """Sum of each column of ``[P, C]`` in single precision at least, as a product with ones."""
    if matrix.dtype != statistics_type(matrix.dtype):
        return matrix.sum(0, dtype=statistics_type(matrix.dtype))
    return (matrix.new_ones(1, matrix.shape[0]) @ matrix)[0]


@dataclass(frozen=True)
class Moments:
    """The input's mean and covariance, and the input without its mean.

    Attributes:
        mean: ``[C]``, as it was taken off first.
        correction: Mean of what that left, ``[C]``.
        covariance: Biased, ``[C, C]``.
        centred: ``[P, C]``, of the maps' type.
    """

    mean: Tensor
    correction: Tensor
    covariance: Tensor
    centred: Tensor

    @classmethod
    def of(cls, inputs: Tensor, joint: Joint | None = None) -> Moments:
        """Return the moments of ``[P, C]``; the mean is taken off first, or a large one would swallow the variance.

        It is taken off twice: the first difference is small enough for its own mean to be exact. With ``joint`` they
        are those of all processes' inputs.
        """
        exact = inputs.to(statistics_type(inputs.dtype))
        mean = column_sums(exact) / len(exact)
        centred = exact - mean
        correction = column_sums(centred) / len(exact)
        if joint is not None:
            means, corrections = gathered(mean, correction)
            mean = joint.average(means)
            correction = joint.average((means - mean) + corrections)
            centred = exact - mean
        centred -= correction
        covariance = centred.new_empty(centred.shape[1], centred.shape[1])
        correlate(covariance, centred, centred)
        covariance = covariance / len(exact) if joint is None else joint.means(covariance)[0]
        return cls(mean, correction, covariance, centred.to(inputs.dtype))

    @classmethod
    def restored(cls, inputs: Tensor, mean: Tensor, correction: Tensor, covariance: Tensor) -> Moments:
        """Return the moments of the same input ``[P, C]`` again, bit by bit."""
        centred = (inputs.to(mean.dtype) - mean).sub_(correction)
        return cls(mean, correction, covariance, centred.to(inputs.dtype))


@dataclass(frozen=True)
class FoldedExpansion:
    """An :class:`~hitdet_nni.nas.fused.plan.Expansion` as ``relu(inputs @ folded^T + shift)``.

    Attributes:
        inputs: ``[P, C]``: without its mean where the batch's statistics are used, the layer's input otherwise.
        weight: Stacked kernels, ``[H, C]``, H hidden channels of all stacked expansions.
        inverse_deviation: ``1 / sqrt(variance + eps)``, ``[H]``.
        mean: Running mean, ``[H]``, where that is used; ``None`` where the batch's is.
        scale: Scales of the normalisations, ``[H]``.
        slope: ``scale * inverse_deviation``, ``[H]``.
        beta: Shifts of the normalisations, ``[H]``.
        folded: ``slope * weight`` in the maps' type.
        shift: ``beta``, less ``slope * mean``, in the maps' type.
    """

    inputs: Tensor
    weight: Tensor
    inverse_deviation: Tensor
    mean: Tensor | None
    scale: Tensor
    slope: Tensor
    beta: Tensor
    folded: Tensor
    shift: Tensor

    def before_relu(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Return what the ReLU of some rows is applied to, ``[P, rows]``; in ``out`` where that is given."""
        return multiply(self.inputs, self.folded[rows].t(), self.shift[rows], out)

    def activations(self, rows: slice) -> Tensor:
        """Return the hidden maps of some rows, ``[P, rows]``."""
        return self.before_relu(rows).relu_()


def expansion_statistics(
    expansion: Expansion,
    parameters: Sequence[Tensor],
    moments: Moments | None,
    updates: RunningUpdates,
    pixels: int | Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return the inverse deviations and, where they are the running ones, means of a stacked expansion, ``[H]`` each.

    Raises:
        ValueError: If the batch's statistics are asked for without the input's moments.
    """
    if not expansion.use_batch_stats:
        running = [running_statistics(unit.norm) for unit in expansion.units]
        mean = torch.cat([one for one, _ in running])
        variance = torch.cat([one for _, one in running])
        return (variance + expansion.eps).rsqrt(), mean
    if moments is None:
        raise ValueError("the batch's statistics need the input's moments")
    weight = _stacked_weight(expansion, parameters, moments.mean.dtype)
    variance = ((weight @ moments.covariance) * weight).sum(1).clamp_(min=0)
    batch_mean = weight @ moments.mean + weight @ moments.correction
    start = 0
    for unit in expansion.units:
        rows = slice(start, start + unit.channels)
        updates.add(unit.norm, slice(None), batch_mean[rows], variance[rows], pixels)
        start = rows.stop
    return (variance + expansion.eps).rsqrt(), None


def fold(
    expansion: Expansion,
    parameters: Sequence[Tensor],
    inputs: Tensor,
    inverse_deviation: Tensor,
    mean: Tensor | None,
) -> FoldedExpansion:
    """Fold the normalisation into the kernels.

    Args:
        expansion: The stacked expansion.
        parameters: Parameters of all candidates.
        inputs: See :class:`FoldedExpansion`.
        inverse_deviation: From :func:`expansion_statistics`.
        mean: From :func:`expansion_statistics`.
    """
    kind = inverse_deviation.dtype
    weight = _stacked_weight(expansion, parameters, kind)
    scale = torch.cat([unit.scale(parameters) for unit in expansion.units]).to(kind)
    beta = torch.cat([unit.shift(parameters) for unit in expansion.units]).to(kind)
    slope = scale * inverse_deviation
    shift = beta if mean is None else beta - slope * mean
    folded = (weight * slope[:, None]).to(inputs.dtype)
    return FoldedExpansion(inputs, weight, inverse_deviation, mean, scale, slope, beta, folded, shift.to(inputs.dtype))


def _stacked_weight(expansion: Expansion, parameters: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    kernels = [unit.kernels(parameters).flatten(1) for unit in expansion.units]  # [hidden, C, 1, 1] -> [hidden, C]
    return torch.cat(kernels).to(kind)


class ExpansionGradient:
    """Collects the gradient of a folded expansion chunk by chunk, then takes it through the normalisation.

    Args:
        expansion: The stacked expansion.
        folded: The same, folded.
        of_parameters: Whether gradients of the parameters are wanted.
    """

    def __init__(self, expansion: Expansion, folded: FoldedExpansion, *, of_parameters: bool) -> None:
        self.expansion = expansion
        self.folded = folded
        self.of_parameters = of_parameters
        self.grad_folded = torch.empty_like(folded.weight) if of_parameters else None
        self._shifts: dict[int, Tensor] = {}
        self._inner: dict[int, Tensor] = {}
        self.inputs = by_columns(folded.inputs) if of_parameters else None

    @property
    def needs_inner(self) -> bool:
        """Whether sums of products with the hidden maps are needed: gradients by parameters say as much."""
        return self.grad_folded is None

    def add(self, rows: slice, grad: Tensor, inner: Tensor | None, sums: Tensor | None = None) -> None:
        """Note the gradient of some rows.

        Args:
            rows: Which hidden channels.
            grad: Gradient by their values before the ReLU, ``[P, rows]``.
            inner: Sum over pixels of the hidden maps times the gradient by them, ``[rows]``; ``None`` unless
                :attr:`needs_inner`. Where statistics are shared, this process's share of it.
            sums: Sum over pixels of ``grad``, ``[rows]``, where it is known.
        """
        self._shifts[rows.start] = column_sums(grad) if sums is None else sums
        if inner is not None:
            self._inner[rows.start] = inner
        if self.grad_folded is not None and self.inputs is not None:
            correlate(self.grad_folded[rows].t(), self.inputs, grad)

    @cached_property
    def grad_shift(self) -> Tensor:
        """Gradient by the shifts, ``[H]``, once all rows are noted."""
        return torch.cat([self._shifts[start] for start in sorted(self._shifts)])

    def parameter_gradients(self, moments: Moments | None, gradients: list[Tensor | None]) -> None:
        """Write the gradients of kernels, scales and shifts to their slots, each of its parameter's shape."""
        if self.grad_folded is None:
            return
        folded = self.folded
        grad_inverse = (self.grad_folded * folded.weight).sum(1)
        grad_weight = self.grad_folded
        if folded.mean is not None:
            grad_inverse = grad_inverse - folded.mean * self.grad_shift
        elif moments is not None:
            through_variance = (folded.inverse_deviation.square() * grad_inverse)[:, None]
            grad_weight.addcmul_(folded.weight @ moments.covariance, through_variance, value=-1)
        grad_weight.mul_(folded.slope[:, None])
        grad_scale = folded.inverse_deviation * grad_inverse
        start = 0
        for unit in self.expansion.units:
            rows = slice(start, start + unit.channels)
            gradients[unit.slot] = grad_weight[rows].view(unit.conv.weight.shape)  # [hidden, C] -> [hidden, C, 1, 1]
            gradients[unit.slot + 1] = grad_scale[rows]
            gradients[unit.slot + 2] = self.grad_shift[rows]
            start = rows.stop

    def through_statistics(self, joint: Joint | None = None) -> tuple[Tensor, Tensor] | None:
        """Return what statistics of the batch, or with ``joint`` of all processes, add to the gradient by the input.

        Returns:
            A vector ``[C]`` and a matrix ``[C, C]``: the gradient of a pixel gets ``vector + centred @ matrix``.
            ``None`` where the running statistics are used.
        """
        folded = self.folded
        if folded.mean is not None:
            return None
        pixels: int | Tensor = len(folded.inputs)
        grad_shift = self.grad_shift
        if self.grad_folded is not None:
            grad_slope = folded.slope * (self.grad_folded * folded.weight).sum(1)
        else:
            inner = torch.cat([self._inner[start] for start in sorted(self._inner)])
            grad_slope = inner - folded.beta * grad_shift
        if joint is not None:
            pixels, (grad_shift, grad_slope) = joint.count, sums(grad_shift, grad_slope)
        factor = folded.inverse_deviation.square() * grad_slope / pixels
        vector = (folded.slope * grad_shift) @ folded.weight / -pixels
        matrix = folded.weight.t() @ (folded.weight * -factor[:, None])
        return vector, matrix
