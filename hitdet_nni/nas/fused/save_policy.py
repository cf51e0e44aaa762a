"""What a mixed layer keeps for its gradients; what it does not keep it computes again."""

from __future__ import annotations

from collections.abc import Hashable
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


@dataclass
class Tape:
    """Tensors that the forward pass leaves for the backward pass, by name."""

    tensors: dict[Hashable, Tensor] = field(default_factory=dict)

    def put(self, tensor: Tensor, *name: Hashable) -> None:
        """Keep a tensor of any shape."""
        self.tensors[name] = tensor

    def get(self, *name: Hashable) -> Tensor | None:
        """Return a kept tensor, in the shape that it was kept in, or ``None``."""
        return self.tensors.get(name)

    def __getitem__(self, name: tuple[Hashable, ...]) -> Tensor:
        """Return a tensor that must have been kept."""
        return self.tensors[name]
