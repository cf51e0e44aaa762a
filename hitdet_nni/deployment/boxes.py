"""Anchors, box decoding and suppression on (x1, y1, x2, y2) in pixels.

Every function can be traced, compiled by ``torch.jit.script`` and exported with symbolic sizes by ``torch.export``, and
is defined where nothing is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float], end: float = 0.0) -> Tensor:
    """Return the anchors of one place, round the origin, or round the first place's middle where boxes have an end.

    Args:
        stride: Pixels of the image per pixel of the map.
        scales: Sides of square anchors, in strides.
        ratios: Height to width.
        end: 1 where the last pixel is part of a box (``skeleton.boxes: inclusive``): corners are whole pixels then.

    Returns:
        ``[A, 4]``, all scales of the first ratio first.
    """
    roots = torch.tensor(ratios).sqrt()[:, None]
    sizes = torch.tensor(scales, dtype=roots.dtype)[None, :]
    widths, heights = (stride * (1 / roots) * sizes).flatten(), (stride * roots * sizes).flatten()
    if not end:
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2
    halves = torch.stack([end - widths, end - heights, widths - end, heights - end], dim=1) / 2
    return ((stride - end) / 2 + halves).round()


def grid_anchors(base: Tensor, level: Tensor, stride: int) -> Tensor:
    """Return the anchors of all positions of a map.

    Args:
        base: Anchors of one place, ``[A, 4]``.
        level: The map, ``[1, C, H, W]``.
        stride: Pixels of the image per pixel of the map.

    Returns:
        ``[H * W * A, 4]``, row by row.
    """
    rows = torch.arange(level.size(2), device=base.device) * stride
    columns = torch.arange(level.size(3), device=base.device) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=2).to(base.dtype)
    return (corners[:, :, None] + base).reshape(-1, 4)


def by_anchor(level: Tensor, values: int) -> Tensor:
    """Reshape a map ``[1, A * values, H, W]`` to ``[H * W * A, values]``, in the order of :func:`grid_anchors`."""
    # Copied always: the question whether it is needed would exclude maps of one pixel from torch.export.
    ordered = level[0].permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    return ordered.view(-1, values)


def decode(boxes: Tensor, offsets: Tensor, extent: Tensor, end: float = 0.0) -> Tensor:
    """Move boxes.

    Args:
        boxes: ``[N, 4]``.
        offsets: ``[N, 4]``: of the centre, in sides of the box, and of the logarithms of width and height.
        extent: Width, height, width, height of the image, to which the result is clipped.
        end: 1 where the last pixel is part of a box, as mmdet's ``LegacyDeltaXYWHBBoxCoder`` has it.

    Returns:
        ``[N, 4]``.

    Source:
        Girshick et al., Rich feature hierarchies, CVPR 2014, appendix C.
    """
    largest = math.log(1000 / 16)  # mmdet's default, so that no side overflows
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2] + end
    centres = centres + sides * offsets[:, :2]
    halves = sides * offsets[:, 2:].clamp(-largest, largest).exp() * 0.5
    return torch.cat([centres - halves, centres + halves], dim=1).clamp(min=0.0).minimum(extent - end)


def with_area(boxes: Tensor) -> Tensor:
    """Return the indices of the boxes ``[N, 4]`` that have an area."""
    return torch.nonzero((boxes[:, 2:] - boxes[:, :2]).amin(dim=1) > 0).squeeze(1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Leave out boxes that overlap a better one of their group.

    Args:
        boxes: ``[N, 4]``, not negative.
        scores: ``[N]``.
        groups: ``[N]``, the class or the level of each box, from 0.
        iou_threshold: A box goes when its IoU with a better, kept one is larger.
        most: Boxes that are kept at most.

    Returns:
        Indices of the kept boxes, best first.
    """
    # Groups are moved apart by more than the largest coordinate; the zero is there for an empty set.
    apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    kept: Tensor = nms(boxes + (groups.to(boxes.dtype) * apart)[:, None], scores, iou_threshold)
    return kept[:most]
