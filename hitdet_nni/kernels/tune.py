"""Measure block sizes of the kernels on the GPU at hand and write the fastest ones to a file.

    python -m hitdet_nni.kernels.tune blocks.json

The package reads ``hitdet_nni/kernels/blocks.json``, so that what was measured once serves everywhere: a program chosen by
a timing of its own could differ between an interrupted run and the one that goes on, which then would round differently.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hitdet_nni.kernels import depthwise, launch, mixture, moments, normalization
from hitdet_nni.kernels.launch import Block, Family, block_key

CONVOLUTION = (
    Block(32, 32, 4, rows=4),
    Block(64, 32, 4, rows=8),
    Block(64, 32, 8, rows=8),
    Block(128, 32, 8, rows=8),
    Block(16, 64, 4, rows=4),
    Block(32, 64, 4, rows=4),
    Block(64, 64, 4, rows=8),
    Block(64, 64, 8, rows=8),
    Block(16, 128, 4, rows=4),
    Block(32, 128, 8, rows=4),
)
WEIGHTS = (
    Block(16, 32, 4, taps=8, rows=4),
    Block(8, 32, 4, taps=8, rows=2),
    Block(8, 32, 4, taps=16, rows=2),
    Block(16, 32, 8, taps=16, rows=4),
    Block(4, 32, 4, taps=16, rows=2),
    Block(32, 32, 4, taps=4, rows=4),
    Block(8, 64, 4, taps=8, rows=2),
    Block(16, 64, 8, taps=8, rows=4),
    Block(16, 64, 4, taps=4, rows=4),
    Block(4, 64, 4, taps=16, rows=2),
)
COLUMNS = (
    Block(32, 32, 4),
    Block(64, 32, 4),
    Block(128, 32, 8),
    Block(32, 64, 4),
    Block(64, 64, 8),
    Block(16, 128, 4),
    Block(32, 128, 8),
)
CANDIDATES: dict[Family, tuple[Block, ...]] = {
    "forward": CONVOLUTION,
    "grad_x": CONVOLUTION,
    "grad_weights": WEIGHTS,
    "columns": COLUMNS,
    "mixture": COLUMNS,
}
DILATIONS = {3: 2, 5: 2, 7: 1}
"""Dilation that a kernel size is measured with."""

ROUNDS = 7
WORKERS = 12


def cases() -> Iterator[tuple[Family, int, torch.dtype, bool]]:
    """Family, kernel size, type and whether maps are small."""
    for kind in (torch.float32, torch.bfloat16):
        for family in CANDIDATES:
            if family in ("columns", "mixture"):
                yield family, 1, kind, False
                continue
            for kernel_size in DILATIONS:
                yield family, kernel_size, kind, False
                yield family, kernel_size, kind, True


def prepare(family: Family, kernel_size: int, kind: torch.dtype, flat: bool, toy: bool, device: str) -> Callable[[], Any]:
    """A launch of a case on random maps that do not fit a GPU's cache."""
    count, height, width, channels = (1024, 7, 7, 512) if flat else (2, 100, 152, 512)
    if toy:
        count, height, width, channels = (2, 7, 7, 24) if flat else (1, 14, 14, 24)
    geometry = depthwise.Geometry(count, height, width, kernel_size, 1, DILATIONS.get(kernel_size, 1))
    x, grad = (torch.randn(geometry.positions, channels, device=device).to(kind) for _ in range(2))
    weight = torch.randn(kernel_size**2, channels, device=device).to(kind)
    rows = torch.rand(4, channels, device=device)
    if family == "forward":
        return lambda: depthwise.forward(x, weight, geometry, relu=True, moments=True)
    if family == "grad_x":
        return lambda: depthwise.grad_x(grad, weight, x, geometry, sums=True)
    if family == "grad_weights":
        return lambda: depthwise.grad_weights(grad, x, geometry, relu=True)
    if family == "columns":

        def columns() -> None:
            normalization.normalize_relu(x, *rows)
            normalization.normalize_relu_gradient_(grad, x, *rows, rows[0], by_batch=True)
            moments.Moments.of(x[None])

        return columns
    matrices, flags = x.view(4, -1, channels), torch.ones(1, 1, device=device)
    total = torch.zeros(matrices.shape[1:], device=device)

    def last() -> None:
        mixture.add_weighted_(total, matrices, rows)
        mixture.last_gradient(grad[: len(total)], matrices, rows, rows, rows, flags, of_matrices=True)

    return last


def use(key: str, block: Block) -> None:
    """Let launches of a case take a block."""
    launch.tuned()[key] = block
    launch.choose_block.cache_clear()


def compile_case(task: tuple[Family, int, torch.dtype, bool, Block]) -> None:
    """Compile a case's programs into Triton's cache, where another process finds them."""
    family, kernel_size, kind, flat, block = task
    use(block_key(family, kernel_size, kind.itemsize, flat), block)
    launcher = prepare(family, kernel_size, kind, flat, True, "cuda")
    launcher()
    torch.cuda.synchronize()


def milliseconds(launcher: Callable[[], Any], rounds: int) -> float:
    """Median time of a launch."""
    times = []
    for round_number in range(-2, rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launcher()
        end.record()
        torch.cuda.synchronize()
        if round_number >= 0:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    chosen = [case for case in cases() if case[0] in options.families]
    tasks = [(*case, block) for case in chosen for block in CANDIDATES[case[0]]]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(compile_case, tasks, chunksize=1)
    blocks, measured = {}, {}
    for case in chosen:
        key = block_key(case[0], case[1], case[2].itemsize, case[3])
        launcher = prepare(*case, False, "cuda")
        times = []
        for block in CANDIDATES[case[0]]:
            use(key, block)
            times.append(milliseconds(launcher, ROUNDS))
        best = min(range(len(times)), key=times.__getitem__)
        blocks[key] = asdict(CANDIDATES[case[0]][best])
        measured[key] = [round(time, 4) for time in times]
        sys.stdout.write(f"{key:40} {min(times):7.3f} ms by {best}, " + " ".join(f"{t:.3f}" for t in times) + "\n")
        sys.stdout.flush()
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "blocks": blocks, "ms": measured}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
