"""Statistics and sums over the batches of all processes (``batch_norm: synced``).

Of a batch normalisation over several processes, three things are joint: mean and variance, the number of pixels behind
them, and in the gradient by what was normalised the sums of the gradients by shift and scale. Gradients by parameters
stay each process's own share; the processes average them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import SyncedBatchNorm2d
from hitdet_nni.errors import InputError


def sums(*tensors: Tensor) -> list[Tensor]:
    """Return sums over the processes of tensors of one type and any shapes, by one exchange; the tensors stay."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # [*shape] -> [numel]
    distributed.sum_in_place(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]  # [numel] -> [*shape]


@dataclass(frozen=True)
class Joint:
    """The pixels of one size of maps in all processes.

    Attributes:
        own: Those of this process.
        count: Those of all, a scalar tensor.
    """

    own: int
    count: Tensor

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and biased variance over all processes from those of each, ``[..., C]``; no cancellation."""
        (total,) = sums(mean * self.own)
        joint = total / self.count
        (squares,) = sums((variance + (mean - joint).square()) * self.own)
        return joint, squares / self.count

    def means(self, *totals: Tensor) -> list[Tensor]:
        """Turn sums over this process's pixels, of any shapes, into means over all pixels."""
        return [total / self.count for total in sums(*totals)]


def are_joint(norms: Sequence[nn.BatchNorm2d]) -> bool:
    """Whether the batch statistics of some layers are now those of all processes.

    Raises:
        InputError: If only some are.
    """
    if distributed.world_size() == 1:
        return False
    training = [isinstance(norm, SyncedBatchNorm2d) for norm in norms if norm.training]
    if any(training) and not all(training):
        raise InputError(
            "a mixed layer has batch normalisations over all processes and over one",
            key="batch_norm",
            allowed="one kind, or supernet.activations: all or checkpoint",
        )
    return any(training)


def count_pixels(own: Sequence[int], like: Tensor) -> list[Joint]:
    """Return the pixels of several sizes of maps, given this process's; ``like``, of any shape, gives the type."""
    (counts,) = sums(like.new_tensor([float(number) for number in own]))
    return [Joint(number, count) for number, count in zip(own, counts.unbind(), strict=True)]
