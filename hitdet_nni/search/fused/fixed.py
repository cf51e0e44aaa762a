"""Layers fixed at one operator, computed as a fused mixed layer of one candidate."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hitdet_nni.operators.blocks import ConvBlock, InvertedResidual, SeparableBlock
from hitdet_nni.search.fused.batch_norm import statistics_type
from hitdet_nni.search.fused.function import FusedMixture
from hitdet_nni.search.fused.saving import Saving

BLOCKS = (InvertedResidual, SeparableBlock, ConvBlock)


class FixedBlock:
    """The forward pass of a block.

    Args:
        block: One of :data:`BLOCKS`.
        saving: What is kept for the gradients.
    """

    def __init__(self, block: nn.Module, saving: Saving) -> None:
        self.block = block
        self.saving = saving
        self._mixture: FusedMixture | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """As the block's own forward pass, which still runs for tensors without data."""
        if type(x) is not Tensor:
            plain: Tensor = type(self.block).forward(self.block, x)
            return plain
        if self._mixture is None:
            self._mixture = FusedMixture({"fixed": self.block}, self.saving)
        return self._mixture(x, x.new_ones(1, dtype=statistics_type(x.dtype)))

    def __reduce__(self) -> tuple[type[FixedBlock], tuple[nn.Module, Saving]]:
        """A copy begins without a mixture."""
        return FixedBlock, (self.block, self.saving)


def fuse_fixed_blocks(module: nn.Module, saving: Saving | None, mixed: type[nn.Module]) -> None:
    """Let every block inside ``module`` that is no candidate be computed fused, or by its own forward pass again.

    Args:
        module: A mutated model space.
        saving: What is kept for the gradients; ``None`` for the blocks' own forward pass.
        mixed: Class of the mixed layers, which hold candidates.
    """
    for block in _blocks(module, mixed):
        if saving is None:
            block.__dict__.pop("forward", None)
        else:
            block.forward = FixedBlock(block, saving)


def _blocks(module: nn.Module, mixed: type[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in BLOCKS:
            yield child
        elif not isinstance(child, mixed):
            yield from _blocks(child, mixed)
