"""HitBackbone: a stem, stages of searched blocks, and an optional tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Component, output_stages, stage_blocks
from hitdet_nni.model.searchable import Candidates, check_layer_count, searched_layer
from hitdet_nni.operators.blocks import InvertedResidual


@MODELS.register_module()
class HitBackbone(BaseModule):  # type: ignore[misc]
    """Backbone whose blocks are searched, or fixed where each entry of ``operators`` is one name.

    Args:
        operators: One entry a block: an operator name, or the names of its candidates.
        widths: Channels of each stage.
        depths: Blocks of each stage.
        strides: Stride of each stage's first block, 1 or 2.
        stem_channels: Channels of the stride-2 3x3 stem.
        tail: ``None``, or ``(width, out_channels)`` of an inverted residual (k3, expansion 3) and a 1x1 convolution
            behind the last stage.
        init_cfg: mmengine initialisation config; by default Kaiming normal (fan out) for convolutions.

    Shape:
        ``[N, 3, H, W]`` to one ``[N, C_i, ceil(H / s_i), ceil(W / s_i)]`` a pyramid level, s = 4, 8, 16, 32: the
        last stage of each resolution.

    Raises:
        InputError: If the number of entries is not the number of blocks, or a name is not an operator's.

    Source:
        Section 3.3; the tail and the five-stage form are the released network's.
    """

    component: Component = "backbone"

    def __init__(
        self,
        operators: Sequence[Candidates],
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        stem_channels: int = 16,
        tail: tuple[int, int] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Conv2d", "mode": "fan_out"})
        blocks = list(stage_blocks(stem_channels, widths, depths, strides))
        check_layer_count("backbone", operators, len(blocks))
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(stem_channels),
            nn.ReLU(inplace=True),
        )
        layers = [
            searched_layer("backbone", index, entry, *block)
            for index, (entry, block) in enumerate(zip(operators, blocks, strict=True))
        ]
        self.stages = nn.ModuleList()
        for depth in depths:
            self.stages.append(nn.Sequential(*layers[:depth]))
            layers = layers[depth:]
        self.output_stages = frozenset(output_stages(strides))
        self.tail: nn.Module = nn.Identity()
        if tail is not None:
            width, out_channels = tail
            self.tail = nn.Sequential(
                InvertedResidual(widths[-1], width, kernel_size=3, dilation=1, expansion=3, stride=1),
                nn.Conv2d(width, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``[N, 3, H, W]`` to the feature maps C1..C4, strides 4 to 32."""
        x = self.stem(x)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.output_stages:
                features.append(x)
        features[-1] = self.tail(features[-1])
        return tuple(features)
