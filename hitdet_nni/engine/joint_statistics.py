"""Statistics and sums over the batches of all processes (``batch_norm: synced``).

Of a batch normalisation over several processes, three things are joint: mean and variance, the number of pixels behind
them, and in the gradient by what was normalised the sums of the gradients by shift and scale. Gradients by parameters
stay each process's own share; the processes average them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from hitdet_nni.engine import distributed


@lru_cache
def statistics_type(compute: torch.dtype) -> torch.dtype:
    """Return the type of statistics, scales and sums for maps of a type."""
    return torch.promote_types(compute, torch.float32)


def channel_moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each channel of ``[N, C, H, W]``, ``[C]`` each; zeros of no pixels."""
    channels, kind = maps.shape[1], statistics_type(maps.dtype)
    if maps.numel() == 0:
        nothing = torch.zeros(2, channels, dtype=kind, device=maps.device)
        return nothing[0], nothing[1]
    zeros = ones = None
    if kind != maps.dtype:  # the results are of the running averages' type where these are given
        zeros = torch.zeros(channels, dtype=kind, device=maps.device)
        ones = torch.ones_like(zeros)
    mean, variance = torch.batch_norm_update_stats(maps, zeros, ones, 0.0)
    return mean, variance


def sums(*tensors: Tensor) -> list[Tensor]:
    """Return sums over the processes of tensors of one type and any shapes, by one exchange; the tensors stay."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # [*shape] -> [numel]
    distributed.sum_in_place(flat)
    return _parts(flat, tensors)


def gathered(*tensors: Tensor) -> list[Tensor]:
    """Return every process's tensors, of one type and any shapes, as ``[processes, *shape]``, by one exchange."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # [*shape] -> [numel]
    return _parts(distributed.gather_tensor(flat), tensors)


def _parts(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of ``[..., numel]`` in the shapes of some tensors."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors], dim=-1)
    # [..., numel] -> [..., *shape]
    return [part.reshape(*flat.shape[:-1], *tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@dataclass(frozen=True)
class Joint:
    """The pixels of one size of maps in all processes.

    Attributes:
        counts: Those of each, ``[processes]``.
    """

    counts: Tensor

    @cached_property
    def count(self) -> Tensor:
        """Those of all together, a scalar tensor; one where there are none, by which sums can be divided."""
        return self.counts.sum().clamp(min=1)

    @cached_property
    def shares(self) -> Tensor:
        """What each process has of them, ``[processes]``."""
        return self.counts / self.count

    @classmethod
    def of_maps(cls, pixels: int, mean: Tensor, variance: Tensor) -> tuple[Joint, Tensor, Tensor]:
        """Return the pixels of all processes, and what :meth:`moments` does, by one exchange.

        Args:
            pixels: Those of this process.
            mean: Over them, ``[C]``.
            variance: Biased, ``[C]``.
        """
        counts, means, variances = gathered(mean.new_full((), pixels), mean, variance)
        joint = cls(counts)
        return (joint, *joint.moments_of(means, variances))

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and biased variance over all processes from those of each, ``[..., C]``, by one exchange."""
        return self.moments_of(*gathered(mean, variance))

    def moments_of(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and biased variance over all from those of each process, ``[processes, ..., C]``.

        Nothing cancels: of the means only their distances from the joint one are squared (Chan, Golub and LeVeque).
        """
        mean = self.average(means)
        return mean, self.average((means - mean).square() + variances)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over all pixels, ``[...]``, of means over each process's, ``[processes, ...]``.

        Not by a product of matrices, which a GPU may round.
        """
        shares = self.shares.view(-1, *(1 for _ in values.shape[1:]))  # [processes] -> [processes, 1, ...]
        return (values * shares).sum(0)

    def means(self, *totals: Tensor) -> list[Tensor]:
        """Turn sums over this process's pixels, of any shapes, into means over all pixels, by one exchange."""
        return [total / self.count for total in sums(*totals)]

    def through_statistics_(
        self, grad: Tensor, x: Tensor, mean: Tensor, slope: Tensor, inverse: Tensor, of_scale: Tensor, of_shift: Tensor
    ) -> None:
        """Add, in place, to the gradient by maps what comes through their joint mean and variance, by one exchange.

        Args:
            grad: The gradient without that, ``[N, C, H, W]``.
            x: The maps, of the same shape.
            mean: Over all processes, ``[C]``.
            slope: The scale of the normalisation times ``inverse``, ``[C]``.
            inverse: ``1 / sqrt(variance + eps)``, ``[C]``.
            of_scale: This process's gradient by the scale, ``[C]``.
            of_shift: Likewise by the shift.
        """
        mean_scale, mean_shift = self.means(of_scale, of_shift)
        through_scale = slope * inverse * mean_scale
        constant = (slope * mean_shift - mean * through_scale)[:, None, None]
        through_scale = through_scale[:, None, None]
        if grad.dtype == constant.dtype:
            grad.sub_(constant).addcmul_(x, through_scale, value=-1)
        else:
            grad.sub_(torch.addcmul(constant, x.to(constant.dtype), through_scale))  # rounded once
