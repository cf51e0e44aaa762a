"""What the machine gives to this process."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal


def available_cores() -> int:
    """Return the number of processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
