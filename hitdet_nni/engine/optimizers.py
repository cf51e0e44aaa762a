"""Settings of the optimisers that several trainings share."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightOptimizer:
    """SGD with linear warm-up and a cosine schedule over the whole training (section 4.2)."""

    lr: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_iterations: int = 0

    def factor(self, iteration: int, iterations: int) -> float:
        """Return the learning rate of an iteration relative to ``lr``."""
        warmup = min(1.0, (iteration + 1) / (self.warmup_iterations + 1))
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / iterations)))
