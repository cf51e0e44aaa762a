"""Deformable RoI pooling: RoI align whose bins are moved, and the packs that predict where to."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision.ops as tv
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size
from torch.nn.modules.utils import _pair


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Average bilinear samples in each bin of each RoI, the bins moved by ``offset``.

    Args:
        input: Features (N, C, H, W).
        rois: (image index, x1, y1, x2, y2) in pixels of the input image, (K, 5).
        offset: (dx, dy) of each bin as multiples of ``gamma`` times the RoI's width and height, (K, 2, height, width);
            none, or an empty tensor: RoI align.
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per image pixel: 1 / stride.
        sampling_ratio: Samples per bin and direction; 0 takes one per feature pixel, rounded up.
        gamma: See ``offset``.

    Returns:
        (K, C, height, width).

    Raises:
        ValueError: If rois or offset have another shape.

    Source:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.2.
    """
    height, width = _pair(output_size)
    if rois.dim() != 2 or rois.size(1) != 5:
        raise ValueError(f"rois {tuple(rois.shape)}; allowed: (K, 5)")
    if offset is None or not offset.numel():
        aligned: Tensor = tv.roi_align(input, rois, (height, width), spatial_scale, sampling_ratio, aligned=True)
        return aligned
    if offset.shape != (len(rois), 2, height, width):
        raise ValueError(f"offset {tuple(offset.shape)}; allowed: {(len(rois), 2, height, width)}")
    images, boxes = rois.detach()[:, 0].long(), rois.detach()[:, 1:] * spatial_scale
    extent = boxes[:, 2:] - boxes[:, :2]  # (K, 2), width first, as all pairs here
    bins = extent / extent.new_tensor([width, height])
    counts = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil().clamp(min=0)
    columns, rows = (torch.arange(count, device=rois.device) for count in (width, height))
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).to(bins)  # (2, height, width)
    start = boxes[:, :2, None, None] - 0.5 + cells * bins[:, :, None, None] + gamma * extent[:, :, None, None] * offset
    pooled = start.new_zeros(len(rois), input.size(1), height, width)
    features = input.to(start.dtype)
    for image in torch.unique(images).tolist():
        chosen = images == image
        means = _mean_of_samples(features[image], start[chosen], bins[chosen], counts[chosen])
        pooled[chosen] = means.to(pooled.dtype)  # autocast samples in 32 bits
    return pooled.to(input.dtype)


def _mean_of_samples(features: Tensor, start: Tensor, bins: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of ``counts`` (K, 2) samples in bins of the size ``bins`` (K, 2) from ``start`` (K, 2, ph, pw).

    A sample within a pixel of the features (C, H, W) reads their edge, one further outside is zero.
    """
    size = start.new_tensor([features.size(2), features.size(1)])[:, None, None]
    total = features.new_zeros(len(start), features.size(0), *start.shape[2:])
    most_x, most_y = counts.amax(dim=0).long().tolist()
    for step in (start.new_tensor([x, y]) for y in range(most_y) for x in range(most_x)):
        position = start + ((step + 0.5) * bins / counts.clamp(min=1))[:, :, None, None]
        taken = ((position >= -1) & (position <= size) & (step < counts)[:, :, None, None]).all(dim=1, keepdim=True)
        grid = ((2 * position + 1) / size - 1).permute(0, 2, 3, 1).flatten(0, 1)[None]  # (1, K * ph, pw, 2)
        sampled = F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)
        sampled = sampled[0].reshape(len(features), len(start), *start.shape[2:]).transpose(0, 1)
        total = total + sampled * taken
    return total / counts.prod(dim=1).clamp(min=1)[:, None, None, None]


class DeformRoIPool(nn.Module):
    """Module form of :func:`deform_roi_pool`, with its arguments."""

    def __init__(
        self, output_size: Size, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        """Pool RoIs (K, 5) with the given offsets."""
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )


class DeformRoIPoolPack(DeformRoIPool):
    """A :class:`DeformRoIPool` that predicts its offsets from the RoI's aligned features.

    Args:
        output_size: Bins, (height, width) or one number for both.
        output_channels: Channels of the features.
        deform_fc_channels: Channels of the hidden layers.
        spatial_scale: Feature pixels per image pixel: 1 / stride.
        sampling_ratio: Samples per bin and direction; 0 takes one per feature pixel, rounded up.
        gamma: Factor of the offsets.

    Shape:
        input (N, C, H, W) and rois (K, 5) to (K, C, height, width).

    Raises:
        ValueError: When called with other channels.
    """

    def __init__(
        self,
        output_size: Size,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels = output_channels
        self.deform_fc_channels = deform_fc_channels
        bins = math.prod(self.output_size)
        self._make_layers(bins, bins * output_channels, deform_fc_channels)

    def _make_layers(self, bins: int, features: int, hidden: int) -> None:
        """Make what predicts something of each bin from a RoI's aligned features, through hidden layers."""
        self.offset_fc = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            _zero_linear(hidden, 2 * bins),
        )

    def _aligned(self, input: Tensor, rois: Tensor) -> Tensor:
        """Return the RoIs' features without offsets, (K, C * height * width)."""
        if input.size(1) != self.output_channels:
            raise ValueError(f"input has {input.size(1)} channels; allowed: output_channels={self.output_channels}")
        return super().forward(input, rois).flatten(1)

    def _deformed(self, input: Tensor, rois: Tensor, aligned: Tensor) -> Tensor:
        offset = self.offset_fc(aligned).view(len(rois), 2, *self.output_size)
        return super().forward(input, rois, offset)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        """Pool the RoIs."""
        return self._deformed(input, rois, self._aligned(input, rois))


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """A :class:`DeformRoIPoolPack` that also predicts a factor of each bin, 0..1; its arguments are those."""

    def _make_layers(self, bins: int, features: int, hidden: int) -> None:
        super()._make_layers(bins, features, hidden)
        self.mask_fc = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(inplace=True), _zero_linear(hidden, bins), nn.Sigmoid()
        )

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        """Pool RoIs (K, 5)."""
        aligned = self._aligned(input, rois)
        mask: Tensor = self.mask_fc(aligned).view(len(rois), 1, *self.output_size)
        return self._deformed(input, rois, aligned) * mask


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer that predicts zeros until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
