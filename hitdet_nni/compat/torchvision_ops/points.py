"""Features at points, points of a RoI as points of the image, and the RoI align that samples one point a bin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size
from torch.nn.modules.utils import _pair


def bilinear_grid_sample(im: Tensor, grid: Tensor, align_corners: bool = False) -> Tensor:
    """Sample features at points of a grid, zeros outside.

    Args:
        im: Features (N, C, H, W).
        grid: (x, y), -1..1 from edge to edge, (N, height, width, 2).
        align_corners: Whether -1 and 1 are the centres of the outer pixels instead of their outer edges.

    Returns:
        (N, C, height, width).
    """
    return F.grid_sample(im, grid, align_corners=align_corners)


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


class SimpleRoIAlign(nn.Module):
    """RoI align that takes one bilinear sample at the centre of each bin, as PointRend does.

    Args:
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per image pixel: 1 / stride.
        aligned: Whether pixel centres lie at .5; otherwise the outer pixels' centres are the edges of the image.

    Shape:
        features (N, C, H, W) and rois (K, 5), with the image index first, to (K, C, height, width), in the order of
        the RoIs.

    Source:
        Kirillov et al., PointRend, CVPR 2020, section 3.1.
    """

    def __init__(self, output_size: Size, spatial_scale: float, aligned: bool = True) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.aligned = aligned
        self.use_torchvision = False

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Sample the RoIs."""
        height, width = self.output_size
        rows, columns = ((torch.arange(count, device=rois.device) + 0.5) / count for count in (height, width))
        centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(rois).view(1, -1, 2)
        points = rel_roi_point_to_rel_img_point(rois.detach(), centres, features, self.spatial_scale)
        images = rois[:, 0].long()
        pooled = features.new_zeros(len(rois), features.size(1), height, width)
        for image in torch.unique(images).tolist():
            chosen = images == image
            sampled = point_sample(features[image, None], points[None, chosen], align_corners=not self.aligned)
            pooled[chosen] = sampled[0].transpose(0, 1).reshape(-1, features.size(1), height, width)
        return pooled
