"""Which mixtures share the statistics of their batch normalisations with other processes (``batch_norm: synced``)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.joint_statistics import Joint, gathered
from hitdet_nni.engine.synced_batch_norm import SyncedBatchNorm2d
from hitdet_nni.errors import InputError


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
    return [Joint(counts) for counts in gathered(*(like.new_full((), number) for number in own))]
