"""Measure block sizes of the kernels on the GPU at hand and write the fastest ones to a file.

    python -m hitdet_nni.kernels.gpu.tune blocks.json

The package reads ``hitdet_nni/kernels/gpu/blocks.json``, so that what was measured once serves everywhere: a program
chosen by a timing of its own could differ between an interrupted run and the one that goes on, which would round
differently.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hitdet_nni.kernels.gpu import depthwise, launch, mixture, moments, normalization
from hitdet_nni.kernels.gpu.launch import Block, Family, block_key

CONVOLUTION = (
    Block(32, 32, 4, columns=4, rows=8),
    Block(16, 32, 4, columns=4, rows=4),
    Block(32, 32, 2, columns=4, rows=8),
    Block(16, 64, 4, columns=4, rows=4),
    Block(32, 64, 8, columns=4, rows=8),
    Block(32, 32, 4, columns=2, rows=4),
    Block(64, 32, 4, columns=2, rows=8),
    Block(32, 64, 4, columns=2, rows=8),
    Block(64, 64, 8, columns=2, rows=8),
    Block(32, 32, 4, columns=1, rows=4),
    Block(64, 32, 4, columns=1, rows=8),
    Block(32, 64, 4, columns=1, rows=4),
    Block(16, 128, 4, columns=1, rows=4),
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
    "grad_weights": CONVOLUTION,
    "columns": COLUMNS,
    "mixture": COLUMNS,
}
KERNELS = ((3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3), (7, 1))
"""Kernel size and dilation of the operators' depthwise convolutions."""

ROUNDS = 4
WORKERS = 12


Case = tuple[Family, int, int, torch.dtype, bool]
"""Family, kernel size, dilation, type, and whether maps are small."""


def cases() -> Iterator[Case]:
    """Return all cases."""
    for kind in (torch.float32, torch.bfloat16):
        for family in CANDIDATES:
            if family in ("columns", "mixture"):
                yield family, 1, 1, kind, False
                continue
            for kernel_size, dilation in KERNELS:
                yield family, kernel_size, dilation, kind, False
                yield family, kernel_size, dilation, kind, True


def case_key(case: Case) -> str:
    """Return the name of a case."""
    family, kernel_size, dilation, kind, flat = case
    return block_key(family, kernel_size, dilation, kind.itemsize, flat)


def prepare(case: Case, *, toy: bool, device: str) -> Callable[[], Any]:
    """Return a launch of a case on random maps that do not fit a GPU's cache, or on ``toy`` ones."""
    family, kernel_size, dilation, kind, flat = case
    count, height, width, channels = (1024, 7, 7, 512) if flat else (2, 100, 152, 512)
    if toy:
        count, height, width, channels = (2, 7, 7, 24) if flat else (1, 14, 14, 24)
    geometry = depthwise.Geometry(count, height, width, kernel_size, 1, dilation)
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
            mean, inverse, scale, shift = rows
            normalization.normalize_relu(x, mean, inverse, scale, shift)
            normalization.normalize_relu_gradient_(grad, x, mean, inverse, scale, shift, scale, use_batch_stats=True)
            moments.Moments.of(x[None])

        return columns
    matrices, flags = x.view(4, -1, channels), torch.ones(4, 1, device=device)  # [P, C] -> [4, P / 4, C]
    total = torch.zeros(matrices.shape[1:], device=device)

    def last() -> None:
        mixture.add_weighted_(total, matrices, rows, rows, rows)
        mixture.last_gradient(grad[: len(total)], matrices, rows, rows, rows, flags, of_matrices=True)

    return last


def use(key: str, block: Block) -> None:
    """Let launches of a case take a block."""
    launch.tuned()[key] = block
    launch.choose_block.cache_clear()


def compile_case(task: tuple[Case, Block]) -> None:
    """Compile a case's programs into Triton's cache, where another process finds them."""
    case, block = task
    use(case_key(case), block)
    prepare(case, toy=True, device="cuda")()
    torch.cuda.synchronize()


def milliseconds(launcher: Callable[[], Any], rounds: int) -> float:
    """Return the mean time that a launch's kernels take on the GPU, without what starting them costs."""
    launcher()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(rounds):
            launcher()
        torch.cuda.synchronize()
    spent = sum(float(event.self_device_time_total) for event in recorded.key_averages())
    return spent / 1e3 / rounds


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--families", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    chosen = [case for case in cases() if case[0] in options.families]
    undilated = [case for case in chosen if case[2] == 1]  # programs are the same for all dilations
    tasks = [(case, block) for case in undilated for block in CANDIDATES[case[0]]]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(compile_case, tasks, chunksize=1)
    blocks, measured = {}, {}
    for case in chosen:
        key = case_key(case)
        launcher = prepare(case, toy=False, device="cuda")
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
