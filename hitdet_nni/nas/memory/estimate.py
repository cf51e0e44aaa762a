"""Memory that a search step needs, estimated before the first one, and the largest that was used."""

from __future__ import annotations

import gc
import hashlib
import re
import resource
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.engine.precision import DTYPES
from hitdet_nni.nas.memory.gpu_passes import forms_of_programs
from hitdet_nni.nas.memory.step_simulation import SimulatedStep, StepSimulation
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer

FIRST_STEPS = 50 * 10**6
"""Bytes that a process on CPU gains in its first steps: machine code of convolutions, pages of libraries."""

KERNEL_COPIES = 2.5
"""Reordered copies and workspace of convolutions on CPU, as a multiple of the step's turnover."""

HEAP_GAPS = 3.5
"""Gaps that the C library's heap is left with, as a multiple of the turnover of blocks that come from the heap."""

HEAP_TURNOVER = 64 * 2**20
"""Turnover from which on more of it leaves no more gaps: glibc maps blocks above 32 MiB one by one and returns them."""

GPU_LIBRARIES = 120 * 10**6
"""Bytes that torch takes from a GPU beside tensors, whatever the step: cuBLAS's workspaces of the forward and of the
backward thread (32 MiB each on a Hopper, 8 MiB before), cuDNN's, and what its allocator rounds. On an H200 steps of
1.1 to .08 GB took 83 to 138 MB more than their tensors, in two modes and three precisions."""

_LARGER_PHASES: dict[str, SimulatedStep] = {}
"""What the larger phase of a step makes, by the form of the supernet; counting it takes seconds."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a search step, by part.

    Attributes:
        process: What the process holds at rest, without weights; 0 for a GPU, whose context is not counted.
        weights: Parameters and buffers.
        optimisers: SGD's momentum and Adam's two moments.
        gradients: Gradients of parameters at the peak.
        activations: All other tensors of the step at the peak: what is kept for backward, and what passes.
        recorded: What the passes of fused layers hold that are recorded on a GPU: what they keep for backward, and what
            they make on the way.
        allocator: What kernels, libraries and the C library's heap hold beside tensors. Its constants are fitted to
            measurements and are the uncertain part of the estimate.
        present: Part of the sum that is held already.
    """

    process: int
    weights: int
    optimisers: int
    gradients: int
    activations: int
    recorded: int
    allocator: int
    present: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        tensors = self.weights + self.optimisers + self.gradients + self.activations + self.recorded
        return self.process + tensors + self.allocator

    @property
    def to_come(self) -> int:
        """Bytes that the first steps will ask for."""
        return self.total - self.present

    def sentence(self) -> str:
        """Return one line in GB of 10^9 bytes, e.g. for the log."""
        names = ("weights", "gradients", "optimisers", "activations", "recorded", "allocator", "process")
        words = {"recorded": "recorded passes"}
        sizes = ((words.get(name, name), getattr(self, name)) for name in names)
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes if size >= 5e6)
        return f"memory of a step: about {self.total / 1e9:.2f} GB ({parts})"


def estimate_step_memory(
    space: Any, settings: Settings, skeleton: Skeleton, device: torch.device, *, upright: bool = True
) -> MemoryEstimate:
    """Estimate the peak of a search step, of the phase that needs more.

    The tensors are counted by :class:`~hitdet_nni.nas.memory.step_simulation.StepSimulation`. Nothing of ``space``
    changes.

    Args:
        space: The mutated model space, its activation mode and batch normalisation chosen, not yet trained.
        settings: Gives batch size, precision and optimisers.
        skeleton: The supernet's skeleton.
        device: Where the search computes.
        upright: Whether images occur in both orientations, of which batches are padded to squares.
    """
    step, alphas = _larger_phase(space, settings, skeleton, device, upright)
    weights = sum(tensor.nbytes for tensor in chain(space.parameters(), space.buffers()))
    of_alphas = sum(alpha.nbytes for alpha in alphas)
    trained = sum(parameter.nbytes for parameter in space.parameters() if parameter.requires_grad) - of_alphas
    momentum = trained if settings.weights.momentum else 0
    on_cpu = device.type == "cpu"
    process = psutil.Process().memory_info().rss - weights if on_cpu else 0
    there = all(parameter.device.type == device.type for parameter in space.parameters())
    # Nothing is left of the activations when the optimiser steps; on a GPU it holds a second copy of the gradients.
    peak = max(step.peak, trained * (1 if on_cpu else 2))
    gradients = step.gradients if step.peak == peak else trained
    return MemoryEstimate(
        process=process,
        weights=weights,
        optimisers=momentum + 2 * of_alphas,
        gradients=gradients,
        activations=peak - gradients,
        recorded=step.recorded,
        allocator=_allocator(step.turnover) if on_cpu else GPU_LIBRARIES,
        present=process + weights if there else process,
    )


def _larger_phase(
    space: Any, settings: Settings, skeleton: Skeleton, device: torch.device, upright: bool
) -> tuple[SimulatedStep, list[nn.Parameter]]:
    """Return what the phase that needs more takes, and the architecture parameters.

    Supernets of one form need the same: seeds of a study, and the supernets that share a screening, are counted once.
    """
    layers = [module for module in space.modules() if isinstance(module, ColumnSparseMixedLayer)]
    alphas = [layer.alpha for layer in layers]
    form = (
        repr(space.detector),
        [(name, value.shape, value.dtype, value.requires_grad) for name, value in space.named_parameters()],
        [(layer.label, layer.activations, layer.active_names) for layer in layers],
        forms_of_programs(space.detector, device),
        skeleton.model_dump_json(),
        settings.data.batch_size,
        settings.precision,
        device.type,
        upright,
    )
    key = hashlib.sha256(repr(form).encode()).hexdigest()
    if key not in _LARGER_PHASES:
        dtype = DTYPES[settings.precision]
        simulation = StepSimulation(space.detector, skeleton, settings.data.batch_size, dtype, device, upright=upright)
        phases = [simulation.run(alphas=True), simulation.run(alphas=False)]
        _LARGER_PHASES[key] = max(phases, key=lambda phase: phase.total)
    return _LARGER_PHASES[key], alphas


def _allocator(turnover: int) -> int:
    return round(FIRST_STEPS + KERNEL_COPIES * turnover + HEAP_GAPS * min(turnover, HEAP_TURNOVER))


def release_memory(device: torch.device) -> None:
    """Give back what finished work has left to the garbage collector, and on a GPU to torch's allocator."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process can still get: of the machine without swap, or of the GPU."""
    if device.type == "cuda":
        release_memory(device)
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available: int = psutil.virtual_memory().available
    return available


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: resident ones on CPU, those of tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss counts what a parent held when it started this process
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
