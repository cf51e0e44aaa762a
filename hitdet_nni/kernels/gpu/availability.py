"""Whether the programs can be used here: by the Triton and the compiler that there are."""

from __future__ import annotations

import logging
import re
from functools import lru_cache

import torch

logger = logging.getLogger(__name__)

EARLIEST_TRITON = (3, 3)
"""Before, a program could make no tuples; torch 2.7 is the first that brings this one along."""


@lru_cache(maxsize=1)
def programs_run() -> bool:
    """Whether the programs can be used: by this Triton and, where there is a GPU, on this one. Tried once a process."""
    problem = _triton_lacks() or _gpu_lacks()
    if problem is not None and torch.cuda.is_available():
        logger.warning(
            "the programs of fused layers cannot be used on this GPU, and slower operations of torch take their place: "
            "%s",
            problem,
        )
    return problem is None


def _triton_lacks() -> str | None:
    try:
        import triton  # noqa: PLC0415 - not everywhere
    except ImportError:
        return "Triton is not installed"
    version = re.match(r"(\d+)\.(\d+)", triton.__version__)
    if version is not None and tuple(map(int, version.groups())) >= EARLIEST_TRITON:
        return None
    return f"Triton {triton.__version__} is too old; torch 2.7 brings a newer one"


def _gpu_lacks() -> str | None:
    if not torch.cuda.is_available():
        return None
    from hitdet_nni.kernels.gpu.normalization import normalize_relu  # noqa: PLC0415 - it imports Triton

    try:
        values = torch.ones(4, 8, device="cuda")  # [P, C]
        normalize_relu(values, *values)
        torch.cuda.synchronize()
    except Exception as error:  # compilers, drivers and folders fail in many ways
        *_, last = str(error).splitlines() or [type(error).__name__]
        needed = "a C compiler (gcc), Python's headers (python3-dev) and a folder to write to (TRITON_CACHE_DIR)"
        return f"{last}; Triton needs {needed}"
    return None
