"""Running statistics of batch normalisation, taken anew from some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

Batch = Mapping[str, Any]
"""``inputs`` (list of N tensors ``[3, H, W]``) and ``data_samples`` (list of N ``DetDataSample``)."""


class _Recalibrated(nn.Module):
    """What torch's ``update_bn`` is given: the layers whose statistics change, and a pass over one of our batches.

    Layers that are in evaluation mode, the frozen ones, are not among them, for ``update_bn`` would reset them.
    """

    def __init__(self, module: nn.Module, run: Callable[[Batch], object]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(part for part in module.modules() if isinstance(part, _BatchNorm) and part.training)
        self.run = run

    def forward(self, batch: Batch) -> None:
        self.run(batch)


def recalibrate(module: nn.Module, batches: Iterable[Batch], run: Callable[[Batch], object]) -> None:
    """Make the running statistics of every batch normalisation the mean of those of some batches, in place.

    Frozen ones stay as they are. No gradient is computed.

    Args:
        module: A detector.
        batches: Training batches, at least one; each counts the same.
        run: Passes a batch through the module, e.g. to its losses.
    """
    was_training = module.training
    module.train()
    update_bn(batches, _Recalibrated(module, run))
    module.train(was_training)
