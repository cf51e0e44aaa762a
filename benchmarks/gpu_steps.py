"""Steps of whole supernets for gpu_parts.py: which supernets, by which implementation, in what time and memory."""

from __future__ import annotations

import gc
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from full_size import Trainer
from largest_batch import cases
from measure import echo, installed_version, seconds, settled_peak_bytes, surroundings

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Component, Skeleton
from hitdet_nni.engine.machine import is_out_of_memory
from hitdet_nni.engine.precision import PrecisionKind

PRECISIONS: tuple[PrecisionKind, ...] = ("fp32", "bf16")
TOY_OPERATORS = 2
"""Candidates of a layer at toy sizes."""

Case = tuple[Skeleton, Mapping[str, Sequence[str]]]


class Warnings(logging.Handler):
    """Counts warnings, such as that of a layer that cannot be recorded, and prints them.

    Attributes:
        counts: By what they say.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning."""
        text = record.getMessage()
        self.counts[text] += 1
        echo(f"warning: {text}")


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        device: Where to measure.
        toy: Whether to take sizes that a CPU computes in seconds.
        until: When no further case is begun, by ``time.time``.
        out: File for the figures.
        cases: Pattern of the names of the cases that are measured; empty for all.
        warnings: What the library has warned of, which figures may suffer from.
    """

    device: torch.device
    toy: bool
    until: float
    out: Path
    cases: str = ""
    warnings: Warnings = field(default_factory=Warnings)

    def chosen(self, name: str) -> bool:
        """Whether a case is to be measured, by its name in the list of what is missing."""
        return re.search(self.cases, name) is not None

    @property
    def time_left(self) -> bool:
        """Whether a further case may begin."""
        return time.time() < self.until

    def write(self, figures: Sequence[Mapping[str, Any]], missing: Sequence[str], **more: Any) -> None:
        """Write what has been measured, and which cases the clock left out."""
        report = surroundings(self.device) | {"nni": installed_version("nni"), "toy": self.toy, **more}
        report |= {"warnings": dict(self.warnings.counts)}
        self.out.write_text(json.dumps(report | {"figures": figures, "missing": missing}, indent=1), encoding="utf-8")


def supernet_cases(toy: bool) -> dict[str, Case]:
    """Supernets of the paper's size, or of the smallest config's."""
    found: dict[str, Case] = dict(cases(load_settings("tiny" if toy else "coco_paper")))
    if toy:
        return {
            name: (skeleton, {component: names[:TOY_OPERATORS] for component, names in space.items()})
            for name, (skeleton, space) in found.items()
            if name in ("trinity", "screening backbone")
        }
    return found


def supernet_plan(toy: bool) -> Iterator[tuple[str, PrecisionKind, int]]:
    """What is measured, in order of value."""
    if toy:
        yield "trinity", "fp32", 1
        yield "screening backbone", "bf16", 2
        return
    for name in ("trinity", "screening backbone"):
        for precision in PRECISIONS:
            for batch in (1, 2):
                yield name, precision, batch
    for name in ("screening head", "screening neck"):
        for precision in PRECISIONS:
            yield name, precision, 1


def release(device: torch.device) -> None:
    """Give back memory that nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


Way = str | Mapping[Component, str]
"""``"NNI"``, a value of ``supernet.activations``, or one for each component."""


def measure_steps(
    case: Case, way: Way, precision: PrecisionKind, batch: int, rounds: int, device: torch.device
) -> tuple[list[float], int | None] | None:
    """Times of steps of a new supernet, and the memory of a step over parameters, buffers and optimisers' states.

    On a GPU the memory is what the process takes from the device. Implementations follow each other in one process,
    each with an empty device, so that what one holds is not counted as another's.

    Returns:
        ``None`` where the step needs more memory than there is.
    """
    release(device)
    trainer = Trainer(*case, way, precision, device)
    images = trainer.batch(batch, batch)

    def step() -> None:
        trainer.step(images)

    try:
        before = held_bytes(trainer)
        peak = settled_peak_bytes(step, device)
        if peak is not None:
            peak -= held_bytes(trainer) - before  # the optimisers' states, which the first step has made
        return [seconds(step, device) for _ in range(rounds)], peak
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def held_bytes(trainer: Trainer) -> int:
    """Bytes of a trainer's parameters, buffers and optimisers' states."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def measure_ways(
    case: Case,
    ways: Mapping[str, Way],
    precision: PrecisionKind,
    batch: int,
    rounds: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Times and peaks in bytes by name; none of those that need more memory than there is."""
    times, peaks = {}, {}
    for name, way in ways.items():
        found = measure_steps(case, way, precision, batch, rounds, device)
        if found is not None:
            times[name], peaks[name] = found
    return times, peaks


def short(value: object) -> str:
    """A figure as a line of the log has it."""
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
