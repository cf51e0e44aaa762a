"""What a step on a GPU consists of: its kernels by time, and for what part of it the device computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from measure import seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KERNELS = 25
"""Kernels of a profile that are listed, by time."""

BUSY = 0.75
"""Share of a step in which the device computes from which on the device, not what starts its work, is the limit."""


def profile_step(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Kernels of a step: their time, number and the :data:`KERNELS` longest by name; on a CPU the operations'.

    Args:
        step: The step; it has run before.
        device: Where it computes.

    Returns:
        ``wall_s`` without the profiler, ``device_s`` the sum over all kernels, ``launches`` their number, ``busy`` the
        share of the one in the other, ``limit`` what the step waits for, and ``kernels``.
    """
    wall = min(seconds(step, device) for _ in range(2))
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorded:
        seconds(step, device)
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    kernels = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e3,
        }
        for event in recorded.key_averages()
        if event.device_type == kind
    ]
    kernels.sort(key=lambda kernel: kernel["ms"], reverse=True)
    computing = sum(kernel["ms"] for kernel in kernels) / 1e3
    return {
        "wall_s": wall,
        "device_s": computing,
        "busy": computing / wall,
        "launches": sum(kernel["calls"] for kernel in kernels),
        "limit": "kernels" if computing > BUSY * wall else "starting them",
        "kernels": kernels[:KERNELS],
    }


def describe_profile(row: Mapping[str, Any]) -> str:
    """The profile as text."""
    lines = [
        f"{row['case']}, {row['precision']}, {row['implementation']}, batch {row['batch']}: {row['wall_s']:.3f} s a "
        f"step, {row['device_s']:.3f} s in {row['launches']} kernels ({row['busy']:.0%}): limited by {row['limit']}"
    ]
    lines += [f"  {kernel['ms']:9.2f} ms {kernel['calls']:6} {kernel['name'][:110]}" for kernel in row["kernels"]]
    return "\n".join(lines)
