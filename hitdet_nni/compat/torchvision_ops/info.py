"""What compiled the ops: nothing did."""

from __future__ import annotations


def get_compiler_version() -> str:
    """Return ``"n/a"``: no compiler made these ops."""
    return "n/a"


def get_compiling_cuda_version() -> str:
    """Return ``"n/a"``: these ops bring no CUDA code of their own."""
    return "n/a"
