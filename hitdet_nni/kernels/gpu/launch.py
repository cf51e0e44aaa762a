"""What all launches share: the type of sums, alignment of channels, block sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

Family = Literal["forward", "grad_x", "grad_weights", "columns", "mixture"]

BLOCKS_FILE = Path(__file__).with_name("blocks.json")
"""Block sizes that :mod:`hitdet_nni.kernels.gpu.tune` measured."""

FLAT_PIXELS = 144
"""Largest map, in pixels, whose pixels a program takes in their order rather than as a rectangle of a map."""

COLUMN_BLOCKS = 264
"""Programs a block of channels among which the pixels of a sum over columns are divided, at most."""


@dataclass(frozen=True)
class Block:
    """What one program computes.

    Attributes:
        pixels: Pixels of its tile, a power of two.
        channels: Channels, a power of two.
        warps: Warps of 32 threads.
        columns: Outputs of a convolution that a program computes for each pixel of its tile.
        rows: Rows of a rectangular tile; ``pixels / rows`` columns.
    """

    pixels: int
    channels: int
    warps: int
    columns: int = 1
    rows: int = 4


DEFAULTS: dict[Family, Block] = {
    "forward": Block(32, 32, 4, columns=4, rows=8),
    "grad_x": Block(32, 32, 4, columns=4, rows=8),
    "grad_weights": Block(32, 32, 4, columns=4, rows=8),
    "columns": Block(64, 32, 4),
    "mixture": Block(64, 32, 4),
}


@lru_cache(maxsize=1)
def tuned() -> dict[str, Block]:
    """Return the measured block sizes by :func:`block_key`."""
    if not BLOCKS_FILE.is_file():
        return {}
    blocks = json.loads(BLOCKS_FILE.read_text(encoding="utf-8"))["blocks"]
    return {key: Block(**block) for key, block in blocks.items()}


def block_key(family: Family, kernel_size: int, dilation: int, item_bytes: int, flat: bool) -> str:
    """Return the name of a case whose block sizes are tuned."""
    return f"{family} k{kernel_size} d{dilation} {8 * item_bytes} bits {'small' if flat else 'large'} maps"


@lru_cache(maxsize=256)
def choose_block(family: Family, kernel_size: int, dilation: int, item_bytes: int, flat: bool) -> Block:
    """Return the block sizes of a launch; a function of its case alone.

    Args:
        family: Which kernel.
        kernel_size: Of the convolution; 1 for kernels that know none.
        dilation: Of the convolution.
        item_bytes: Bytes of a number of the maps.
        flat: Whether the maps are small (:data:`FLAT_PIXELS`).
    """
    key = block_key(family, kernel_size, dilation, item_bytes, flat)
    return tuned().get(key, DEFAULTS[family])


def start(program: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
    """Start a program on as many places as a grid has; not on tensors without data, of which sizes are all there is.

    Args:
        program: What ``triton.jit`` made.
        grid: Places, one to three numbers.
        arguments: Its arguments, the first of them a tensor.
        constants: Those that it is compiled for, and Triton's own options.
    """
    if not arguments[0].is_meta:
        program[grid](*arguments, **constants)


def alignment(channels: int) -> int:
    """Return the largest of 8, 4, 2, 1 that divides a number of channels: so many are read at once."""
    return next(unit for unit in (8, 4, 2, 1) if channels % unit == 0)


def accumulation_type(kind: torch.dtype) -> torch.dtype:
    """Return the type of sums over maps of a type."""
    return torch.promote_types(kind, torch.float32)


def triton_type(kind: torch.dtype) -> Any:
    """Return Triton's name of a type of sums."""
    import triton.language as tl  # noqa: PLC0415 - only where there is a GPU, or its interpreter

    return tl.float64 if kind == torch.float64 else tl.float32
