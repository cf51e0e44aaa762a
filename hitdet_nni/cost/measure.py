"""What FLOPs are counted for: the size of the input, the RoIs and the convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hitdet_nni.config.skeleton import ROI_SIZE
from hitdet_nni.operators.costs import Convention, Cost, Size, halved


@dataclass(frozen=True)
class Measure:
    """What FLOPs are counted for, and how.

    Attributes:
        shape: Rows and columns of the network's input.
        proposals: RoIs that the head sees per picture.
        convention: What is counted.
    """

    shape: Size
    proposals: int
    convention: Convention

    def size(self, reduction: int) -> Size:
        """Return the rows and columns of a map whose side is the picture's divided by ``reduction``."""
        return halved(self.shape, reduction)

    def shared(self, reductions: Iterable[int], cost_at: Callable[[Size], Cost]) -> Cost:
        """Return the cost of a layer that is applied to several maps: the parameters once, the FLOPs of all.

        Args:
            reductions: Ratio of the picture's side to that of each map; none stands for all pooled RoIs.
            cost_at: Cost of the layer on a map of the given size.
        """
        costs = [cost_at(self.size(reduction)) for reduction in reductions]
        if not costs:
            return cost_at((ROI_SIZE, ROI_SIZE)).times(self.proposals)
        return Cost(costs[0].params, sum(cost.flops for cost in costs))
