"""What gpu_parts.py runs around its measurements: compiling beforehand, and the largest batch that a GPU holds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from full_size import STOCK, Trainer
from gpu_cases import case_name
from gpu_steps import (
    PRECISIONS,
    Case,
    Options,
    Way,
    measure_steps,
    release,
    supernet_cases,
    supernet_plan,
)
from largest_batch import cases
from measure import Held, climb, echo

from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine.precision import PrecisionKind

WARMING = 6
"""Processes that compile side by side."""


def warm(options: Options) -> None:
    """Let Triton compile what the other parts run, supernets side by side, into the cache that processes share."""
    plan = sorted(
        {
            (name, precision)
            for name, precision, batch in supernet_plan(options.toy)
            if options.chosen(case_name("supernets", case=name, precision=precision, batch=batch))
        }
    )

    def compile_one(case: tuple[str, PrecisionKind]) -> dict[str, Any]:
        name, precision = case
        parts = str(Path(__file__).with_name("gpu_parts.py"))
        script = [sys.executable, parts, "step", "--out", str(options.out), "--device", options.device.type]
        started = time.perf_counter()
        command = [*script, "--case", name, "--precision", precision, *(["--toy"] if options.toy else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            echo(f"{name}, {precision}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        return {
            "case": name,
            "precision": precision,
            "seconds": time.perf_counter() - started,
            "ran": not done.returncode,
        }

    with ThreadPoolExecutor(WARMING) as pool:
        options.write(list(pool.map(compile_one, plan)), [])


def step_once(options: Options, name: str, precision: PrecisionKind) -> None:
    """A step of a supernet with one image."""
    trainer = Trainer(*supernet_cases(options.toy)[name], "fused-low", precision, options.device)
    trainer.step(trainer.batch(1, 1))


def largest(options: Options) -> None:
    """The largest batch that the GPU holds, by running it: the trinity, and the screening of all components at once."""
    config = "tiny" if options.toy else "coco_paper"
    available = dict(cases(load_settings(config)))
    plan: list[tuple[str, PrecisionKind, str]] = [
        (name, precision, way)
        for precision in PRECISIONS
        for name in ("trinity", "screening all")
        for way in (STOCK, "fused-low")
    ]
    if options.toy:
        available, plan = supernet_cases(toy=True), [("trinity", "fp32", "fused-low")]
    named = [
        (case_name("largest", case=name, implementation=way, precision=precision), name, precision, way)
        for name, precision, way in plan
    ]
    named = [case for case in named if options.chosen(case[0])]
    figures: list[dict[str, Any]] = []
    for index, (_, name, precision, way) in enumerate(named):
        if not options.time_left:
            break
        found = largest_batch(available[name], way, precision, options)
        for batch, (gb, spent) in found.items():
            row = {"case": name, "precision": precision, "implementation": way, "batch": batch, "gb": gb}
            figures.append(row | {"seconds": spent, "largest": batch == max(found) and not options.toy})
            echo(f"{name}, {precision}, {way}: batch {batch}, {gb:.1f} GB, {spent:.3f} s a step")
        if not found:
            row = {"case": name, "precision": precision, "implementation": way, "batch": 0, "gb": None}
            figures.append(row | {"seconds": None, "largest": True})
            echo(f"{name}, {precision}, {way}: one image needs more memory than there is")
        more = {"config": config, "input_size": available[name][0].input_size}
        options.write(figures, [name for name, *_ in named[index + 1 :]], **more)


def largest_batch(case: Case, way: Way, precision: PrecisionKind, options: Options) -> dict[int, Held]:
    """GB over parameters and optimisers, and seconds, of steps with one image, with two, and with the most.

    Each batch is a new supernet's: what is recorded for one batch is no load for the next.
    """

    def held(batch: int) -> Held | None:
        found = measure_steps(case, way, precision, batch, 1, options.device)
        return None if found is None else ((found[1] or 0) / 1e9, statistics.median(found[0]))

    known = {batch: found for batch in (1, 2) if (found := held(batch)) is not None}
    if len(known) == 2 and options.device.type == "cuda":
        release(options.device)
        known |= climb(held, known, torch.cuda.mem_get_info(options.device)[0] / 1e9)
    return known
