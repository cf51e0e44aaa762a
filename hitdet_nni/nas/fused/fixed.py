"""Layers fixed at one operator, computed as a fused mixed layer of one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hitdet_nni.engine.joint_statistics import statistics_type
from hitdet_nni.nas.fused.function import FusedMixture
from hitdet_nni.nas.fused.reading import Reader, readers
from hitdet_nni.nas.fused.save_policy import FusedMode


class FusedBlock(nn.Module):
    """What stands in the place of a block to compute it fused.

    Its children are the block's own, by the same names, so that parameters and the keys of the state dict are the same.

    Args:
        block: A block that a reader knows; all parameters are in its children.
        activations: What is kept for the gradients.

    Shape:
        As the block's.
    """

    def __init__(self, block: nn.Module, activations: FusedMode) -> None:
        super().__init__()
        assert not [*block.parameters(recurse=False), *block.buffers(recurse=False)]
        self.activations = activations
        self._replaced = (block,)  # a tuple, lest the block be a child and its keys occur twice
        self._mixture: FusedMixture | None = None
        self.training = block.training
        for name, child in block.named_children():
            self.add_module(name, child)  # refuses the name of an attribute of this class

    @property
    def replaced(self) -> nn.Module:
        """The block that this module stands for, in the same mode."""
        (block,) = self._replaced
        block.training = self.training
        return block

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block; for tensors without data, which only have shapes, by its own forward pass."""
        if type(x) is not Tensor:
            plain: Tensor = self.replaced(x)
            return plain
        if self._mixture is None:
            self._mixture = FusedMixture({"fixed": self.replaced}, self.activations)
        return self._mixture(x, x.new_ones(1, dtype=statistics_type(x.dtype)))

    def forget(self) -> None:
        """Give back what the mixture holds; the next forward pass makes another one."""
        self._mixture = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: no mixture."""
        return {**self.__dict__, "_mixture": None}


def fuse_fixed_blocks(module: nn.Module, activations: FusedMode | None, mixed: type[nn.Module]) -> None:
    """Exchange every block inside ``module`` that is no candidate for a :class:`FusedBlock`, or put the blocks back.

    Blocks of families that the fused layer does not know stay as they are.

    Args:
        module: A mutated model space.
        activations: What is kept for the gradients; ``None`` for the blocks themselves.
        mixed: Class of the mixed layers, which hold candidates.
    """
    _exchange(module, activations, mixed, readers())


def _exchange(
    parent: nn.Module, activations: FusedMode | None, mixed: type[nn.Module], known: Mapping[type[nn.Module], Reader]
) -> None:
    if isinstance(parent, mixed):
        return
    for name, child in list(parent.named_children()):
        block = child.replaced if isinstance(child, FusedBlock) else child
        if type(block) in known:
            setattr(parent, name, block if activations is None else FusedBlock(block, activations))
        else:
            _exchange(child, activations, mixed, known)
