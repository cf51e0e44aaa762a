"""How much boxes overlap: upright ones, and ones turned about their centre."""

from __future__ import annotations

import torch
from torch import Tensor

_MODES = ("iou", "iof")

_PAIRS_AT_ONCE = 1 << 18
"""Pairs of rotated boxes whose overlaps are computed together: some 50 MB of memory."""

_LEAST_AREA = 1e-14
"""A rotated box with less area than this, in square pixels, overlaps nothing."""


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r}; allowed: {', '.join(_MODES)}")


def _checked(boxes: Tensor, columns: int) -> Tensor:
    """Return the boxes as (N, columns); an empty tensor of any shape is none."""
    if len(boxes) and (boxes.dim() != 2 or boxes.size(1) != columns):
        raise ValueError(f"boxes {tuple(boxes.shape)}; allowed: (N, {columns}), or none")
    return boxes.reshape(len(boxes), columns)


def _check_aligned(boxes1: Tensor, boxes2: Tensor) -> None:
    if len(boxes1) != len(boxes2):
        raise ValueError(f"{len(boxes1)} and {len(boxes2)} boxes with aligned=True; allowed: as many of both")


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", aligned: bool = False, offset: int = 0
) -> Tensor:
    """Return the overlap of boxes.

    Args:
        bboxes1: (M, 4), (x1, y1, x2, y2) in pixels; none may have any shape.
        bboxes2: (N, 4), likewise.
        mode: ``"iou"``: intersection over union; ``"iof"``: intersection over the area of the first box.
        aligned: Compare the i-th boxes with each other (M = N) instead of all pairs.
        offset: Added to widths and heights, 0 or 1 pixels.

    Returns:
        (M, N), or (M,) if aligned. Two boxes without area give 0 / 0.

    Raises:
        ValueError: For another mode, offset or shape, or aligned boxes that are not as many.
    """
    _check_mode(mode)
    if offset not in (0, 1):
        raise ValueError(f"offset={offset!r}; allowed: 0, 1")
    first, second = _checked(bboxes1, 4), _checked(bboxes2, 4)
    if aligned:
        _check_aligned(first, second)
    else:
        first = first[:, None]
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    common = (high - low + offset).clamp(min=0).prod(dim=-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(dim=-1) for boxes in (first, second))
    return common / (area1 + area2 - common if mode == "iou" else area1)


@torch.no_grad()
def box_iou_rotated(
    bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", aligned: bool = False, clockwise: bool = True
) -> Tensor:
    """Return the overlap of rotated boxes, exact but for rounding; no gradient.

    Args:
        bboxes1: (M, 5): centre x and y, width, height in pixels, angle in radians.
        bboxes2: (N, 5), likewise.
        mode: ``"iou"``: intersection over union; ``"iof"``: intersection over the area of the first box.
        aligned: Compare the i-th boxes with each other (M = N) instead of all pairs.
        clockwise: Whether a positive angle turns the x axis (to the right) towards the y axis (down).

    Returns:
        (M, N), or (M,) if aligned; 0 for boxes without area.

    Raises:
        ValueError: For another mode or shape, or aligned boxes that are not as many.
    """
    _check_mode(mode)
    first, second = _checked(bboxes1, 5).double(), _checked(bboxes2, 5).double()
    if not clockwise:
        mirror = first.new_tensor([1, 1, 1, 1, -1])
        first, second = first * mirror, second * mirror
    if aligned:
        _check_aligned(first, second)
        overlaps = _rotated_overlaps(first, second, mode)
    else:
        rows = max(1, _PAIRS_AT_ONCE // max(1, len(second)))
        chunks = [_rotated_overlaps(some[:, None], second, mode) for some in torch.split(first, rows)]
        overlaps = torch.cat(chunks) if chunks else first.new_zeros(0, len(second))
    return overlaps.to(bboxes1.dtype)


def _rotated_overlaps(first: Tensor, second: Tensor, mode: str) -> Tensor:
    """Return the overlaps of boxes (..., 5) whose leading dimensions are broadcast."""
    area1, area2 = (boxes[..., 2] * boxes[..., 3] for boxes in (first, second))
    common = _common_area(first, second)
    whole = area1 + area2 - common if mode == "iou" else area1.expand_as(common)
    solid = (area1 >= _LEAST_AREA) & (area2 >= _LEAST_AREA)
    return torch.where(solid, common / whole, 0.0)


def _common_area(first: Tensor, second: Tensor) -> Tensor:
    """Return the area that rotated boxes share.

    In the frame of the second box that box is the rectangle |x| <= w / 2, |y| <= h / 2. At each x the first box is an
    interval between two of its edges, and what both share the interval between the edges' y limited to +-h / 2. So the
    area is the sum over the first box's edges of the integral of the limited y over the edge's x within +-w / 2, with
    the sign of the direction in which the edge goes around. No case is told from another by a comparison that rounding
    could turn: each term is a continuous function of the boxes.
    """
    cos, sin = second[..., 4].cos(), second[..., 4].sin()
    dx, dy = (first[..., :2] - second[..., :2]).unbind(-1)
    centre = torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], dim=-1)
    turn = first[..., 4] - second[..., 4]
    half_x = 0.5 * first[..., 2, None] * torch.stack([turn.cos(), turn.sin()], dim=-1)
    half_y = 0.5 * first[..., 3, None] * torch.stack([-turn.sin(), turn.cos()], dim=-1)
    corners = [centre - half_x - half_y, centre + half_x - half_y, centre + half_x + half_y, centre - half_x + half_y]
    start = torch.stack(corners, dim=-2)  # (..., 4, 2), with the x axis ahead of the y axis
    end = start.roll(-1, dims=-2)
    limit_x, limit_y = (0.5 * second[..., 2:4, None]).unbind(-2)
    x0, x1 = (torch.clamp(point[..., 0], -limit_x, limit_x) for point in (start, end))
    y0, y1 = (_height_at(x, start, end) for x in (x0, x1))
    # The edges of smaller y go to larger x, so that the upper limit of each interval counts with the other sign.
    return ((x0 - x1) * _mean_limited(y0, y1, limit_y)).sum(dim=-1).clamp(min=0)


def _height_at(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the y of the edges at ``x``; of an upright edge, whose integral is zero, any of its y."""
    run = end[..., 0] - start[..., 0]
    share = ((x - start[..., 0]) / torch.where(run == 0, 1.0, run)).clamp(0, 1)
    return torch.lerp(start[..., 1], end[..., 1], share)


def _mean_limited(y0: Tensor, y1: Tensor, limit: Tensor) -> Tensor:
    """Return the mean over [0, 1] of ``y0 + t * (y1 - y0)`` limited to +-``limit``."""
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    inner_low, inner_high = torch.clamp(low, -limit, limit), torch.clamp(high, -limit, limit)
    above = high - torch.maximum(low, limit).clamp(max=high)
    below = torch.minimum(high, -limit).clamp(min=low) - low
    total = limit * (above - below) + (inner_high - inner_low) * (inner_high + inner_low) / 2
    length = high - low
    return torch.where(length == 0, inner_low, total / torch.where(length == 0, 1.0, length))
