"""Which pixels and channels a program computes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(channels, CHANNELS: tl.constexpr):
    """Return the number of a program's tile, and its channels, ``[CHANNELS]``; neighbours have the same pixels."""
    across = tl.cdiv(channels, CHANNELS)
    number = tl.program_id(0)
    return number // across, (number % across) * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def tile_pixels(tile, count, height, width, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr):
    """Return the pixels of a tile: map, row and column, whether they exist; [PIXELS] each."""
    within = tl.arange(0, PIXELS)
    if FLAT:
        pixel = tile * PIXELS + within
        column = pixel % width
        row = (pixel // width) % height
        image = pixel // (width * height)
        return image, row, column, pixel < count * height * width
    columns: tl.constexpr = PIXELS // ROWS
    across = tl.cdiv(width, columns)
    down = tl.cdiv(height, ROWS)
    column = (tile % across) * columns + within % columns
    row = ((tile // across) % down) * ROWS + within // columns
    image = tile // (across * down) + within * 0
    return image, row, column, (row < height) & (column < width) & (image < count)
