"""What a mixed layer keeps for its gradients; what it does not keep it computes again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

FusedMode = Literal["fused", "fused-low", "fused-min"]


@dataclass(frozen=True)
class SavePolicy:
    """What a mode keeps besides the layer's input and a few numbers a channel.

    Attributes:
        hidden: The maps between expansion and depthwise convolution, ``e`` times the input of each inverted residual.
        projections: The maps before the last normalisation, one of the output's size a candidate.
    """

    hidden: bool
    projections: bool


FUSED_MODES: dict[FusedMode, SavePolicy] = {
    "fused": SavePolicy(hidden=True, projections=True),
    "fused-low": SavePolicy(hidden=False, projections=True),
    "fused-min": SavePolicy(hidden=False, projections=False),
}
"""The modes, from fast and large to slow and small."""

NOTHING = SavePolicy(hidden=False, projections=False)
"""Where no gradient will be asked for."""


LARGE = 2**20
"""Bytes from which on a tensor is copied to its place as soon as it is put on a tape, and need not be held twice."""


@dataclass
class Tape:
    """Tensors that the forward pass leaves for the backward pass, by name.

    Attributes:
        tensors: What has been put on it.
        places: Where some of it is to lie, shaped as what will be put there. Small tensors are left where they are:
            whoever gave the places copies them together.
    """

    tensors: dict[Hashable, Tensor] = field(default_factory=dict)
    places: Mapping[Hashable, Tensor] = field(default_factory=dict)

    def put(self, tensor: Tensor, *name: Hashable) -> None:
        """Keep a tensor of any shape, which is not changed any more."""
        place = self.room(*name)
        self.tensors[name] = tensor if place is None or place is tensor else place.copy_(tensor)

    def room(self, *name: Hashable) -> Tensor | None:
        """Return the place, of any shape, where a large tensor to be kept may be computed, if there is one."""
        place = self.places.get(name)
        return None if place is None or place.nbytes < LARGE else place

    def get(self, *name: Hashable) -> Tensor | None:
        """Return a kept tensor, in the shape that it was kept in, or ``None``."""
        return self.tensors.get(name)

    def __getitem__(self, name: tuple[Hashable, ...]) -> Tensor:
        """Return a tensor that must have been kept."""
        return self.tensors[name]
