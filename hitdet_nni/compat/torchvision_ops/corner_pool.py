"""Corner pooling: at each position the largest value from there to an edge of the image."""

from __future__ import annotations

from torch import Tensor, nn

_DIRECTIONS = {"bottom": (2, False), "left": (3, True), "right": (3, False), "top": (2, True)}
"""Mode -> the dimension that is scanned, and whether from its end."""


class CornerPool(nn.Module):
    """Running maximum in one direction.

    Args:
        mode: The edge that the running maximum moves to: ``"bottom"`` takes the largest value at or above each
            position, ``"top"`` at or below it, ``"right"`` at or left of it, ``"left"`` at or right of it.

    Shape:
        (N, C, H, W) to the same.

    Raises:
        ValueError: For another mode.

    Source:
        Law and Deng, CornerNet, ECCV 2018, section 3.5.
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        if mode not in _DIRECTIONS:
            raise ValueError(f"mode={mode!r}; allowed: {', '.join(_DIRECTIONS)}")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pool the features."""
        dim, from_end = _DIRECTIONS[self.mode]
        scanned = (x.flip(dim) if from_end else x).cummax(dim).values
        return scanned.flip(dim) if from_end else scanned
