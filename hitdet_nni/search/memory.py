"""Memory that a search step needs, estimated before the first one."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from torch import nn

from hitdet_nni.precision import DTYPES
from hitdet_nni.search.mixed import ColumnSparseMixedLayer
from hitdet_nni.search.step_simulation import SimulatedStep, StepSimulation
from hitdet_nni.settings import Settings
from hitdet_nni.skeleton import Skeleton

LIBRARIES = 50 * 2**20
"""What a process on CPU gains in its first steps: machine code of convolutions, pages of libraries; measured."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a search step, by part.

    Attributes:
        process: What the process held before without the weights; not counted on a GPU.
        weights: Parameters and buffers.
        gradients: Gradients of parameters alive at the peak.
        optimisers: Momentum of the weights, two moments of the architecture parameters.
        activations: All other tensors of the step: what is kept for backward, and what passes.
        allocator: On CPU, memory that the C library holds between blocks or that its caches hold; not counted on a GPU.
        phase: The phase that needs most.
    """

    process: int
    weights: int
    gradients: int
    optimisers: int
    activations: int
    allocator: int
    phase: str

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.process + self.weights + self.gradients + self.optimisers + self.activations + self.allocator

    def sentence(self) -> str:
        """One line for a person, in GB of 1e9 bytes."""
        parts = ("weights", "gradients", "optimisers", "activations", "allocator", "process")
        shares = ", ".join(f"{part} {getattr(self, part) / 1e9:.2f}" for part in parts if getattr(self, part))
        return f"memory of a step: about {self.total / 1e9:.2f} GB ({shares})"
