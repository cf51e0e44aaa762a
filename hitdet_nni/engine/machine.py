"""What the machine gives to this process."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

OUT_OF_MEMORY = ("out of memory", "alloc_failed", "unable to find an engine to execute")
"""What torch, the driver, NCCL and Triton say where memory does not suffice, and cuBLAS and cuDNN where they could not
have their workspaces, in small letters."""


def available_cores() -> int:
    """Return the number of processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an operation on a GPU failed for want of memory; libraries say so in words of their own."""
    message = str(error).lower()
    return any(said in message for said in OUT_OF_MEMORY)


def processor(device: Literal["cpu", "cuda"]) -> str:
    """Return what this machine computes with, such as ``"AMD EPYC 7B13, x86_64"``.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the first GPU; ``"no GPU"`` where torch finds none.
    """
    if device == "cuda":
        import torch  # noqa: PLC0415  (takes seconds, and most ask for the processor)

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    found = None
    with suppress(OSError):
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", about, re.MULTILINE)
    # Where the system does not say, machines are told apart by their names.
    return f"{found[1] if found else f'processor of {platform.node()}'}, {platform.machine()}"
