"""Backbone and neck of a decided detector, without mmdet; their state has the keys of the trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.skeleton import Component, Skeleton
from hitdet_nni.operators.blocks import InvertedResidual
from hitdet_nni.operators.registry import build_operator


def operator_layers(architecture: Architecture, component: Component) -> list[nn.Module]:
    """Build the modules of a component's layers, in order."""
    return [
        build_operator(architecture.sample[layer.label], layer.in_channels, layer.out_channels, layer.stride)
        for layer in architecture.skeleton.searched_layers()
        if layer.component == component
    ]


class Backbone(nn.Module):
    """A stem, stages of blocks and an optional tail: what ``HitBackbone`` computes once it is decided.

    Args:
        skeleton: Depths, strides, widths and the tail.
        layers: The blocks, in order.

    Shape:
        ``[N, 3, H, W]`` to one ``[N, C_i, ceil(H / s_i), ceil(W / s_i)]`` a level, s = 4, 8, 16, 32.
    """

    def __init__(self, skeleton: Skeleton, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        channels = skeleton.stem_channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        blocks = iter(layers)
        self.stages = nn.ModuleList(nn.Sequential(*(next(blocks) for _ in range(depth))) for depth in skeleton.depths)
        self.output_stages: list[int] = list(skeleton.output_stages)
        self.tail: nn.Module = nn.Identity()
        if skeleton.tail is not None:
            width, out_channels = skeleton.tail.width, skeleton.tail.out_channels
            self.tail = nn.Sequential(
                InvertedResidual(skeleton.widths[-1], width, kernel_size=3, dilation=1, expansion=3, stride=1),
                nn.Conv2d(width, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map ``[N, 3, H, W]`` to the feature maps C1..C4."""
        x = self.stem(x)
        features: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.output_stages:
                features.append(x)
        features[-1] = self.tail(features[-1])
        return features


class Neck(nn.Module):
    """Top-down and bottom-up fusion: what ``HitNeck`` computes once it is decided.

    Args:
        skeleton: Width, levels, and how the extra levels are made.
        layers: The operators: the row on the backbone's maps, fine to coarse, then the row on the top-down maps.

    Shape:
        The backbone's maps to one ``[N, width, H_i, W_i]`` a level of the pyramid.
    """

    def __init__(self, skeleton: Skeleton, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        extra_convs, width = skeleton.layout.extra_convs, skeleton.neck_width
        levels = len(skeleton.neck_channels)
        self.top_down = nn.ModuleList(layers[:levels])
        self.bottom_up = nn.ModuleList(layers[levels:])
        self.fuse = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(levels - 1))
        self.start_level = skeleton.start_level
        self.subsampled_levels = 0 if extra_convs else skeleton.extra_levels
        convolved_levels = skeleton.extra_levels if extra_convs else 0
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(convolved_levels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the backbone's maps, fine to coarse, into the pyramid."""
        pyramid: list[Tensor] = []
        for index, operator in enumerate(self.top_down):
            pyramid.append(operator(features[self.start_level + index]))
        for finer in range(len(pyramid) - 2, -1, -1):
            coarse = F.interpolate(pyramid[finer + 1], scale_factor=2.0, mode="nearest")
            pyramid[finer] = pyramid[finer] + coarse
        laterals: list[Tensor] = []
        for index, operator in enumerate(self.bottom_up):
            laterals.append(operator(pyramid[index]))
        outputs = [laterals[0]]
        for index, convolution in enumerate(self.fuse):
            outputs.append(convolution(F.max_pool2d(outputs[-1], 2) + laterals[index + 1]))
        for _ in range(self.subsampled_levels):
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        for index, convolution in enumerate(self.extra):
            outputs.append(convolution(F.relu(outputs[-1]) if index else outputs[-1]))
        return outputs
