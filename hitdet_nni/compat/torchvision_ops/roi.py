"""RoI align and RoI pooling; RoIs are (image index, x1, y1, x2, y2) in pixels of the input image."""

from __future__ import annotations

import torch
import torchvision.ops as tv
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size
from torch.nn.modules.utils import _pair


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Average bilinear samples in each bin of each RoI, see :class:`RoIAlign`; returns (K, C, height, width).

    Raises:
        NotImplementedError: If ``pool_mode`` is not ``"avg"``.
    """
    if pool_mode != "avg":
        raise NotImplementedError(f"RoIAlign pool_mode={pool_mode!r}; allowed: 'avg' (a compiled mmcv provides 'max')")
    pooled: Tensor = tv.roi_align(input, rois, _pair(output_size), spatial_scale, sampling_ratio, aligned)
    return pooled


class RoIAlign(nn.Module):
    """RoI align.

    Args:
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per image pixel: 1 / stride.
        sampling_ratio: Samples per bin and direction; 0 takes one per feature pixel, rounded up.
        pool_mode: Only ``"avg"``.
        aligned: Move the RoIs by half a feature pixel, so that pixel centres lie at .5.
        use_torchvision: Kept for mmcv's callers; it has no effect, torchvision is always used.

    Shape:
        input (N, C, H, W) and rois (K, 5) to (K, C, height, width).

    Raises:
        NotImplementedError: When called, for another ``pool_mode``.
    """

    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool the RoIs."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.pool_mode, self.aligned
        )


def roi_pool(input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """Take the largest value in each bin of each RoI, see :class:`RoIPool`; returns (K, C, height, width)."""
    height, width = _pair(output_size)
    # mmcv does not round the RoI as torchvision's roi_pool does: each bin reaches from the floor of its start to the
    # ceiling of its end, and the last pixel of a RoI belongs to it.
    low = rois[:, 1:3].detach() * spatial_scale
    extent = (rois[:, 3:5].detach() + 1) * spatial_scale - low
    columns, rows = _bins(low[:, 0], extent[:, 0], width), _bins(low[:, 1], extent[:, 1], height)
    pooled = [
        _largest_in_bins(_largest_in_bins(input[image], columns[k], dim=2), rows[k], dim=1).transpose(1, 2)
        if positive
        else input.new_zeros(input.size(1), height, width)
        for k, (image, positive) in enumerate(zip(rois[:, 0].long().tolist(), (extent > 0).all(dim=1), strict=True))
    ]
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.size(1), height, width)


def _bins(low: Tensor, extent: Tensor, count: int) -> list[list[list[int]]]:
    """Return the half-open pixel range of each of ``count`` equal bins of each RoI."""
    edges = torch.arange(count + 1, device=low.device) * (extent / count)[:, None] + low[:, None]
    ranges: list[list[list[int]]] = torch.stack([edges[:, :-1].floor(), edges[:, 1:].ceil()], dim=2).long().tolist()
    return ranges


def _largest_in_bins(values: Tensor, bins: list[list[int]], dim: int) -> Tensor:
    """Replace ``dim`` of (C, H, W) by a last dimension with the maximum of each bin, 0 where it has no pixel."""
    size = values.size(dim)
    ranges = [(min(max(start, 0), size), min(max(end, 0), size)) for start, end in bins]
    return torch.stack(
        [
            values.narrow(dim, start, end - start).max(dim).values
            if start < end
            else torch.zeros_like(values.select(dim, 0))
            for start, end in ranges
        ],
        dim=2,
    )


class RoIPool(nn.Module):
    """RoI max pooling; a bin without pixels, or of a RoI without area, is zero.

    Args:
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per image pixel: 1 / stride.

    Shape:
        input (N, C, H, W) and rois (K, 5) to (K, C, height, width).
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool the RoIs."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)
