"""Where the time of a search goes: a step of a shipped config by its parts, and what comes once an epoch or a stage.

It trains real supernets, as `make search` does, on fewer images; times are CPU seconds of one thread.

    python benchmarks/search_step.py                            # the embedded experiment: a few minutes
    python benchmarks/search_step.py --only search --steps 5    # half a minute
    python benchmarks/search_step.py --json
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import echo, surroundings

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.sampling import SeededImages
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.lightning_resume import ExactResume
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.nas import evaluator, supernet
from hitdet_nni.nas.epoch_watcher import SearchMonitor
from hitdet_nni.nas.mixed import ACTIVATION_MODES
from hitdet_nni.nas.strategy import ColumnSparseLightningModule
from hitdet_nni.nas.supernet import Phase, train_supernet

PARTS: dict[str, tuple[Any, str]] = {
    "step": (ColumnSparseLightningModule, "training_step"),
    "image": (SeededImages, "__getitem__"),
    "forward": (evaluator, "detection_loss"),
    "backward": (Precision, "backward"),
    "optimiser": (Precision, "step"),
    "epoch's end": (SearchMonitor, "on_train_epoch_end"),
    "checkpoint": (ExactResume, "_save"),
    "memory estimate": (supernet, "estimate_step_memory"),
}
"""What is timed: owner and name of a function."""


@dataclass(frozen=True)
class StageFigures:
    """CPU time of a stage's parts, in milliseconds.

    Attributes:
        stage: ``"search"``, or the component screened.
        activations: How its mixed layers compute.
        data: Images of a step, before the loader makes batches of them.
        forward: Both forward passes of a step.
        backward: Both backward passes.
        optimiser: Both updates, clipping included.
        bookkeeping: The rest of a step: regularisers, phases, signs of health, finiteness.
        epoch_end: Held-out evaluation and record at the end of an epoch.
        checkpoint: One checkpoint.
        memory_estimate: The estimate before the first step.
    """

    stage: str
    activations: str
    data: float
    forward: float
    backward: float
    optimiser: float
    bookkeeping: float
    epoch_end: float
    checkpoint: float
    memory_estimate: float


@contextmanager
def timed() -> Iterator[dict[str, list[float]]]:
    """Within the context the CPU seconds of every call of :data:`PARTS` are collected, by part."""
    times: dict[str, list[float]] = {part: [] for part in PARTS}

    def wrapped(part: str, function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                times[part].append(time.process_time() - start)

        return call

    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(patch.object(owner, name, wrapped(part, getattr(owner, name))))
        yield times


def measure(stage: str, settings: Settings, steps: int) -> StageFigures:
    """Train a supernet for two epochs, and measure the second one's steps."""
    space = dict(load_search_space("hit_detector" if stage == "search" else settings.space))
    if stage != "search":
        fixed = settings.screening.fixed
        space = {c: list(space[c]) if c == stage else [getattr(fixed, c)] for c in COMPONENTS}
    phase = Phase(settings.skeleton, space, 2, 0, 0.1, settings.search.flops_weight, stage=stage)
    data = open_data(settings.data, settings.seed)
    with tempfile.TemporaryDirectory() as folder, timed() as times:
        train_supernet(phase, settings, data, settings.seed, lambda record: None, CheckpointFolder(Path(folder)))

    def per_step(part: str) -> float:
        calls = times[part][-(len(times[part]) // 2) :]  # the first epoch fills caches
        return 1e3 * statistics.median(calls) * len(calls) / steps

    parts = {name: per_step(name) for name in ("forward", "backward", "optimiser")}
    return StageFigures(
        stage=stage,
        activations=settings.supernet.activations,
        data=per_step("image"),
        **parts,
        bookkeeping=per_step("step") - sum(parts.values()),
        epoch_end=1e3 * times["epoch's end"][-1],
        checkpoint=1e3 * statistics.median(times["checkpoint"]),
        memory_estimate=1e3 * sum(times["memory estimate"]),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--config", default="digits", help="config on the embedded digits (default: digits)")
    parser.add_argument("--steps", type=int, default=12, help="steps an epoch (default: 12)")
    parser.add_argument("--only", choices=(*COMPONENTS, "search"), help="one stage: a component's screening, or search")
    parser.add_argument(
        "--activations", choices=list(ACTIVATION_MODES), help="how mixed layers compute (default: the config's)"
    )
    options = parser.parse_args()
    images = load_settings(options.config).data
    # Both halves of the training set have as many steps; the held-out evaluation is that of the whole set.
    settings = load_settings(options.config, {"data.train": 2 * options.steps * images.batch_size})
    if options.activations is not None:
        chosen = settings.supernet.model_copy(update={"activations": options.activations})
        settings = settings.model_copy(update={"supernet": chosen})
    prepare_process(1)
    report = surroundings(torch.device("cpu"))
    if not options.json:
        echo(" | ".join(f"{key}: {value}" for key, value in report.items()))
        echo("milliseconds of CPU time: the first five are of a step, the others of one occurrence")
        echo(" ".join(f"{name.replace('_', ' '):>15}" for name in StageFigures.__dataclass_fields__))
    found = []
    for stage in (options.only,) if options.only else (*COMPONENTS, "search"):
        found.append(measure(stage, settings, options.steps))
        if not options.json:
            values = asdict(found[-1]).values()
            echo(" ".join(f"{value:>15.1f}" if isinstance(value, float) else f"{value:>15}" for value in values))
    if options.json:
        echo(json.dumps({**report, "figures": [asdict(figures) for figures in found]}, indent=1))


if __name__ == "__main__":
    main()
