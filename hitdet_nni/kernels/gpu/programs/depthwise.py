"""Depthwise convolutions and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from hitdet_nni.kernels.gpu.programs.tiles import place, tile_pixels

SIZES = ["count", "height", "width", "height_out", "width_out", "channel_units", "dilation"]
"""Arguments whose values make no program of their own: compiling one takes longer than what is gained."""


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def convolve(
    x, weight, source, y, means, deviations, counts,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, MASK: tl.constexpr,
    TURNED: tl.constexpr, SUMS: tl.constexpr, MOMENTS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr,
    ROWS: tl.constexpr, FLAT: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute COLUMNS outputs at distances of the dilation for each of a program's pixels: they share inputs.

    With TURNED the kernels are turned by 180 degrees.
    """
    channels = channel_units * UNIT
    part, channel = place(channels, CHANNELS)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    anchors = tl.cdiv(width_out, COLUMNS * dilation) * dilation
    zeros = tl.zeros([PIXELS, CHANNELS], SUM)
    first, total, squares = zeros, zeros, zeros
    number = tl.zeros([PIXELS], SUM)
    for tile in range(part, tiles, parts):
        image, row, anchor, exists = tile_pixels(tile, count, height_out, anchors, PIXELS, ROWS, FLAT)
        column = (anchor // dilation) * (COLUMNS * dilation) + anchor % dilation
        first_row = row * STRIDE - reach
        first_column = column * STRIDE - reach
        start = (image * height + first_row).to(tl.int64) * width + first_column
        inputs = x + (start[:, None] * channels + channel[None, :])
        outputs = ()
        for _ in tl.static_range(COLUMNS):
            outputs = outputs + (zeros,)
        for down in range(K):
            line = first_row + down * dilation
            inside_row = exists & (line >= 0) & (line < height)
            taps = ()
            for across in tl.static_range(K):
                tap = K * K - 1 - (down * K + across) if TURNED else down * K + across
                taps = taps + (tl.load(weight + tap * channels + channel, mask=known, other=0.0).to(SUM),)
            inputs_row = inputs + (down * dilation * width) * channels
            for step in tl.static_range(K + COLUMNS - 1):
                position = first_column + step * dilation
                inside = inside_row & (position >= 0) & (position < width)
                value = tl.load(
                    inputs_row + (step * dilation) * channels, mask=inside[:, None] & known[None, :], other=0.0
                ).to(SUM)
                if RELU:
                    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                added = ()
                for output in tl.static_range(COLUMNS):
                    if (step >= output) and (step - output < K):
                        added = added + (outputs[output] + value * taps[step - output][None, :],)
                    else:
                        added = added + (outputs[output],)
                outputs = added
        start = (image * height_out + row).to(tl.int64) * width_out + column
        entry = start[:, None] * channels + channel[None, :]
        for output in tl.static_range(COLUMNS):
            there = exists & (column + output * dilation < width_out)
            written = there[:, None] & known[None, :]
            result = outputs[output]
            here = entry + (output * dilation) * channels
            if MASK:
                result = tl.where(tl.load(source + here, mask=written, other=0.0) <= 0, 0.0, result)
            rounded = result.to(y.dtype.element_ty)
            tl.store(y + here, rounded, mask=written)
            if SUMS:
                total += tl.where(written, rounded.to(SUM), 0.0)
            if MOMENTS:
                result = tl.where(written, rounded.to(SUM), 0.0)
                if output == 0:
                    first = tl.where(tile == part, result, first)
                difference = tl.where(written, result - first, 0.0)
                total += difference
                squares += difference * difference
                number += there.to(SUM)
    if SUMS:
        tl.store(means + part * channels + channel, tl.sum(total, 0), mask=known)
    if MOMENTS:
        some = tl.maximum(number, 1.0)[:, None]
        mean = first + total / some
        squares = squares - total * total / some
        all_of_them = tl.sum(number, 0)
        joint = tl.sum(mean * number[:, None], 0) / tl.maximum(all_of_them, 1.0)
        difference = mean - joint[None, :]
        within = tl.sum(squares + number[:, None] * difference * difference, 0)
        tl.store(means + part * channels + channel, joint, mask=known)
        within = tl.maximum(within, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(deviations + part * channels + channel, within, mask=known)
        tl.store(counts + part, all_of_them)


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def strided_grad_x(
    grad, weight, source, grad_x, sums,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, MASK: tl.constexpr, SUMS: tl.constexpr,
    PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Compute the gradient by a strided convolution's input: a pixel gathers the outputs whose strides meet a tap."""
    channels = channel_units * UNIT
    part, channel = place(channels, CHANNELS)
    known = channel < channels
    reach = (K - 1) * dilation // 2
    columns = tl.zeros([PIXELS, CHANNELS], SUM)
    for tile in range(part, tiles, parts):
        image, row, column, exists = tile_pixels(tile, count, height, width, PIXELS, ROWS, FLAT)
        total = tl.zeros([PIXELS, CHANNELS], SUM)
        for down in range(K):
            output_row = row + reach - down * dilation
            inside_row = exists & (output_row >= 0) & (output_row % STRIDE == 0)
            output_row = output_row // STRIDE
            inside_row = inside_row & (output_row < height_out)
            start = (image * height_out + output_row).to(tl.int64) * width_out
            for across in tl.static_range(K):
                output_column = column + reach - across * dilation
                inside = inside_row & (output_column >= 0) & (output_column % STRIDE == 0)
                output_column = output_column // STRIDE
                inside = inside & (output_column < width_out)
                given = grad + (start + output_column)[:, None] * channels + channel[None, :]
                value = tl.load(given, mask=inside[:, None] & known[None, :], other=0.0).to(SUM)
                tap = tl.load(weight + (down * K + across) * channels + channel, mask=known, other=0.0).to(SUM)
                total += value * tap[None, :]
        position = (image * height + row).to(tl.int64) * width + column
        entry = position[:, None] * channels + channel[None, :]
        written = exists[:, None] & known[None, :]
        if MASK:
            total = tl.where(tl.load(source + entry, mask=written, other=0.0) <= 0, 0.0, total)
        rounded = total.to(grad_x.dtype.element_ty)
        tl.store(grad_x + entry, rounded, mask=written)
        if SUMS:
            columns += tl.where(written, rounded.to(SUM), 0.0)
    if SUMS:
        tl.store(sums + part * channels + channel, tl.sum(columns, 0), mask=known)


@triton.jit(do_not_specialize=[*SIZES, "tiles", "parts"])
def grad_weights(
    grad, x, partial,
    count, height, width, height_out, width_out, channel_units, dilation, tiles, parts,
    UNIT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    COLUMNS: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr,
    CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Sum one line of the kernel over a program's part of the pixels, COLUMNS neighbours at a time."""
    channels = channel_units * UNIT
    number, channel = place(channels, CHANNELS)
    known = channel < channels
    down = number % K
    part = number // K
    reach = (K - 1) * dilation // 2
    anchors = tl.cdiv(width_out, COLUMNS * dilation) * dilation
    totals = ()
    for _ in tl.static_range(K):
        totals = totals + (tl.zeros([PIXELS, CHANNELS], SUM),)
    for tile in range(part, tiles, parts):
        image, row, anchor, exists = tile_pixels(tile, count, height_out, anchors, PIXELS, ROWS, FLAT)
        column = (anchor // dilation) * (COLUMNS * dilation) + anchor % dilation
        start = (image * height_out + row).to(tl.int64) * width_out + column
        outputs = grad + (start[:, None] * channels + channel[None, :])
        given = ()
        for output in tl.static_range(COLUMNS):
            there = exists & (column + output * dilation < width_out)
            value = tl.load(
                outputs + (output * dilation) * channels, mask=there[:, None] & known[None, :], other=0.0
            ).to(SUM)
            given = given + (value,)
        line = row * STRIDE - reach + down * dilation
        first_column = column * STRIDE - reach
        inside_row = exists & (line >= 0) & (line < height)
        start = (image * height + line).to(tl.int64) * width + first_column
        inputs = x + (start[:, None] * channels + channel[None, :])
        for step in tl.static_range(K + COLUMNS - 1):
            position = first_column + step * dilation
            inside = inside_row & (position >= 0) & (position < width)
            value = tl.load(inputs + (step * dilation) * channels, mask=inside[:, None] & known[None, :], other=0.0).to(
                SUM
            )
            if RELU:
                value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
            added = ()
            for across in tl.static_range(K):
                if (step >= across) and (step - across < COLUMNS):
                    added = added + (totals[across] + value * given[step - across],)
                else:
                    added = added + (totals[across],)
            totals = added
    for across in tl.static_range(K):
        entry = (part * K * K + down * K + across) * channels + channel
        tl.store(partial + entry, tl.sum(totals[across], 0), mask=known)
