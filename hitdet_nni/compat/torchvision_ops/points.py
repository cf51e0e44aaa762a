"""Features at points, and points of a RoI as points of the image."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **kwargs: Any) -> Tensor:
    """Sample features at points given as shares of the image.

    Args:
        input: Features (N, C, H, W).
        points: (x, y) in 0..1, (N, P, 2) or (N, height, width, 2).
        align_corners: Whether 0 and 1 are the centres of the outer pixels instead of their outer edges.
        **kwargs: Further arguments of torch's grid_sample.

    Returns:
        (N, C, P) or (N, C, height, width).
    """
    grid = points[:, :, None] if points.dim() == 3 else points
    sampled = F.grid_sample(input, 2 * grid - 1, align_corners=align_corners, **kwargs)
    return sampled[..., 0] if points.dim() == 3 else sampled


def rel_roi_point_to_rel_img_point(
    rois: Tensor, rel_roi_points: Tensor, img: tuple[int, int] | Tensor, spatial_scale: float = 1.0
) -> Tensor:
    """Turn points given as shares of their RoI into shares of the image.

    Args:
        rois: (N, 4), or (N, 5) with the image index first.
        rel_roi_points: (x, y) in 0..1, (N, P, 2).
        img: (height, width) of the features in pixels, or the features (N, C, H, W).
        spatial_scale: Feature pixels per image pixel: 1 / stride.

    Returns:
        (N, P, 2).
    """
    height, width = img.shape[2:] if isinstance(img, Tensor) else img
    low, high = rois[:, None, -4:-2], rois[:, None, -2:]
    return (low + rel_roi_points * (high - low)) * spatial_scale / low.new_tensor([width, height])
