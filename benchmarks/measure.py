"""How the benchmarks measure: steps interleaved in one process, bytes kept for backward, peak memory, FLOP/s."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hitdet_nni.kernels.products import multiply

Step = Callable[[], Any]

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
"""Height and width, by kind of device, of the product of matrices whose FLOP/s stand for what the machine can do."""


def echo(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def cpu_model() -> str:
    """Name of the processor, its generation, and the widest vectors that torch uses there."""
    information = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if information.is_file():
        first, *_ = information.read_text(encoding="utf-8").split("\n\n")
        entries = dict(re.findall(r"^(.+?)\s*: (.*)$", first, re.M))
        if {"model name", "cpu family", "model"} <= entries.keys():
            name = f"{entries['model name']} (family {entries['cpu family']}, model {entries['model']})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def surroundings(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": cpu_model(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"triton": installed_version("triton")} if device.type == "cuda" else {}),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "clock": clock_name(device),
    }


def installed_version(package: str) -> str | None:
    """Version of a package, ``None`` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def clock_name(device: torch.device) -> str:
    """Which clock :func:`seconds` reads: CPU time is blind to other processes, but means one thread's work only."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def seconds(step: Step, device: torch.device) -> float:
    """Time of one step."""
    clock = time.process_time if clock_name(device) == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def interleaved(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Times of all steps, one after the other in each round, each round beginning with another one.

    What disturbs the machine meanwhile hits neighbours alike, so ratios within a round mean more than times do.

    Args:
        steps: The steps by name.
        rounds: Rounds that count; one before them does not, which also lets caches fill.
        device: Where the steps compute.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-1, rounds):
        for offset in range(len(names)):
            name = names[(round_number + offset) % len(names)]
            spent = seconds(steps[name], device)
            if round_number >= 0:
                times[name].append(spent)
    return times


def median_ratio(times: Mapping[str, list[float]], base: str, name: str) -> float:
    """Median over the rounds of how many times faster ``name`` is than ``base``."""
    return statistics.median(slow / fast for slow, fast in zip(times[base], times[name], strict=True))


def gemm_flops(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s (2 a multiply-add) of a large product of matrices, the best of several by the best library."""
    size = GEMM_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: tuple[Step, ...] = (lambda: left @ right, lambda: multiply(left, right))
    best = min(seconds(product, device) for _ in range(10) for product in products)
    return 2 * size**3 / best


def saved_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between a forward pass and its backward pass.

    Args:
        forward: Computes something that requires gradients.
        known: Tensors that do not count: parameters and buffers.
    """
    present = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in present:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    del output
    return sum(kept.values())


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Largest memory during a step, over what is in use before it; ``None`` where the system cannot say.

    It is the process's resident memory on a CPU, what torch takes from a GPU; caches of the allocator are given back
    first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        step()
        return torch.cuda.max_memory_reserved(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - before


WARM_STEPS = 3
"""Steps after which nothing is compiled, chosen or recorded any more."""


def settled_peak_bytes(step: Step, device: torch.device) -> int | None:
    """Largest memory of a step once it has run often enough, over what was in use before its first one.

    On a GPU it is what the process takes from the device, which also counts what recorded passes hold between steps.
    What the first steps alone needed has been given back.
    """
    if device.type != "cuda":
        step()
        return peak_bytes(step, device)
    before = _reserved_bytes(device)
    for _ in range(WARM_STEPS):
        step()
    _reserved_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) - before


def _reserved_bytes(device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def clear_gradients(*modules: nn.Module) -> None:
    """Forget all gradients."""
    for module in modules:
        module.zero_grad(set_to_none=True)


Held = tuple[float, float]
"""Memory of a step over what is held before it, GB, and its time, s."""


def climb(
    held: Callable[[int], Held | None],
    known: Mapping[int, Held],
    free_gb: float,
    time_left: Callable[[], bool] = lambda: True,
) -> tuple[dict[int, Held], bool]:
    """What larger batches need that are held, up to the largest.

    Each guess is by the growth between the two largest that are held; from one that is not held on by halves.

    Args:
        held: Tries a batch; ``None`` where there is too little memory.
        known: What two smaller batches at least need.
        free_gb: Memory that a step may take.
        time_left: Whether another batch may be tried.

    Returns:
        What was held of what was tried, and whether the largest batch is known.
    """
    found, beyond = dict(known), None
    while beyond != max(found) + 1 and time_left():
        (small, (small_gb, _)), (large, (large_gb, _)) = sorted(found.items())[-2:]
        growth = max((large_gb - small_gb) / (large - small), 1e-3)
        guess = max(large + int((free_gb - large_gb) / growth), large + 1)
        batch = guess if beyond is None else min(guess, (large + beyond) // 2)
        need = held(batch)
        if need is None:
            beyond = batch
        else:
            found[batch] = need
    return {batch: held for batch, held in found.items() if batch not in known}, beyond == max(found) + 1
