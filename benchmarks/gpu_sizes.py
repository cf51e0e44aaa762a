"""What gpu_parts.py runs around its measurements: compiling beforehand, and the largest batch that a GPU holds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

Rows = Sequence[Mapping[str, Any]]
"""Figures of batches."""


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
    figures: Rows = []
    for index, (_, name, precision, way) in enumerate(named):
        if not options.time_left:
            break
        more = {"config": config, "input_size": available[name][0].input_size}
        missing = [name for name, *_ in named[index:]]
        begun = partial(options.write, missing=missing, **more)
        figures = largest_batch(name, available[name], way, precision, options, figures, begun)
        options.write(figures, missing[1:], **more)


def largest_batch(
    name: str,
    case: Case,
    way: Way,
    precision: PrecisionKind,
    options: Options,
    before: Rows,
    write: Callable[[Rows], None],
) -> Rows:
    """Run steps with one image, with two, and with more, up to the most.

    Each batch is a new supernet's: what is recorded for one batch is no load for the next.

    Args:
        name: What the supernet is called.
        case: The supernet.
        way: What computes it.
        precision: Type of the activations.
        options: Give the device, and the time.
        before: Rows of other cases.
        write: Keeps those and the rows of this case that are known, after each batch.

    Returns:
        All rows. The largest batch is marked, unless the clock has ended the search for it.
    """
    words = f"{name}, {precision}, {way}"
    described = {"case": name, "precision": precision, "implementation": way}
    rows: dict[int, dict[str, Any]] = {}

    def held(batch: int) -> Held | None:
        found = measure_steps(case, way, precision, batch, 1, options.device)
        if found is None:
            return None
        gb, spent = (found[1] or 0) / 1e9, statistics.median(found[0])
        rows[batch] = described | {"batch": batch, "gb": gb, "seconds": spent, "largest": False}
        echo(f"{words}: batch {batch}, {gb:.1f} GB, {spent:.3f} s a step")
        write([*before, *rows.values()])
        return gb, spent

    known = {batch: found for batch in (1, 2) if (found := held(batch)) is not None}
    certain = len(known) < 2
    if not known:
        echo(f"{words}: one image needs more memory than there is")
        rows[0] = described | {"batch": 0, "gb": None, "seconds": None}
    elif not certain and options.device.type == "cuda":
        release(options.device)
        free_gb = torch.cuda.mem_get_info(options.device)[0] / 1e9
        _, certain = climb(held, known, free_gb, lambda: options.time_left)
    rows[max(rows)]["largest"] = certain
    return [*before, *(rows[batch] for batch in sorted(rows))]
