"""What FLOPs are counted for: the size of the input, the RoIs and the convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hitdet_nni.config.skeleton import ROI_SIZE
from hitdet_nni.operators.costs import Convention, Cost, Size, halved


@dataclass(frozen=True)
class CountingConditions:
    """What FLOPs are counted for, and how.

    Attributes:
        shape: Height and width of the network's input.
        proposals: RoIs that the head sees per image.
        convention: What is counted.
    """

    shape: Size
    proposals: int
    convention: Convention

    def size(self, stride: int) -> Size:
        """Return the height and width of a map whose side is the image's divided by ``stride``."""
        return halved(self.shape, stride)

    def shared(self, strides: Iterable[int], cost_at: Callable[[Size], Cost]) -> Cost:
        """Return the cost of a layer that is applied to several maps: the parameters once, the FLOPs of all.

        Args:
            strides: Ratio of the image's side to that of each map; none stands for all pooled RoIs.
            cost_at: Cost of the layer on a map of the given size.
        """
        costs = [cost_at(self.size(stride)) for stride in strides]
        if not costs:
            return cost_at((ROI_SIZE, ROI_SIZE)).times(self.proposals)
        return Cost.shared(costs)
