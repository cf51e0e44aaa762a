"""HitNeck: top-down and bottom-up fusion with a searched operator on each lateral connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Component
from hitdet_nni.model.searchable import Candidates, check_layer_count, searched_layer


@MODELS.register_module()
class HitNeck(BaseModule):  # type: ignore[misc]
    """Feature pyramid with a top-down and a bottom-up path, two searched operators a level.

    With C_i the backbone's maps and op the searched operators, fine to coarse: ``P_i = op_i(C_i) + up(P_(i+1))``,
    ``M_i = op_(L+i)(P_i)``, ``N_1 = M_1`` and ``N_(i+1) = conv3x3(maxpool(N_i) + M_(i+1))``.

    Args:
        operators: One entry a searched layer (a name, or the candidates' names): first the row on the backbone's
            maps, fine to coarse, then the row on the top-down maps.
        in_channels: Channels of each backbone map that is used, fine to coarse.
        out_channels: Channels of every output map.
        start_level: Backbone maps to leave out, from the finest.
        extra_levels: Levels behind the coarsest, each half the size of the one before.
        extra_convs: Make the extra levels by strided 3x3 convolutions, with a ReLU before all but the first, and not by
            subsampling.
        init_cfg: mmengine initialisation config; by default Xavier uniform for convolutions.

    Shape:
        ``start_level`` maps that are not used and L maps ``[N, in_channels[i], H_i, W_i]`` to ``L + extra_levels`` maps
        ``[N, out_channels, H_i, W_i]``.

    Raises:
        InputError: If the number of entries is not twice the number of levels, or a name is not an operator's.

    Source:
        Section 3.3; the fusion convolutions are the released network's. The extra convolutions are RetinaNet's (Lin et
        al., ICCV 2017, section 4), behind the pyramid rather than the backbone.
    """

    component: Component = "neck"

    def __init__(
        self,
        operators: Sequence[Candidates],
        in_channels: Sequence[int],
        out_channels: int = 256,
        start_level: int = 0,
        extra_levels: int = 1,
        extra_convs: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"})
        levels = len(in_channels)
        check_layer_count("neck", operators, 2 * levels)
        inputs = [*in_channels, *[out_channels] * levels]
        layers = [
            searched_layer("neck", index, entry, channels, out_channels, 1)
            for index, (entry, channels) in enumerate(zip(operators, inputs, strict=True))
        ]
        self.top_down = nn.ModuleList(layers[:levels])
        self.bottom_up = nn.ModuleList(layers[levels:])
        self.fuse = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(levels - 1))
        self.start_level = start_level
        self.extra_levels = extra_levels
        self.extra = nn.ModuleList()
        if extra_convs:
            self.extra.extend(
                nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in range(extra_levels)
            )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse the backbone's maps, fine to coarse, into the pyramid N1..N(L + extra)."""
        used = features[self.start_level :]
        pyramid = [operator(feature) for operator, feature in zip(self.top_down, used, strict=True)]
        for level in reversed(range(len(pyramid) - 1)):
            size = pyramid[level].shape[-2:]
            pyramid[level] = pyramid[level] + F.interpolate(pyramid[level + 1], size=size, mode="nearest")
        laterals = [operator(feature) for operator, feature in zip(self.bottom_up, pyramid, strict=True)]
        outputs = [laterals[0]]
        for convolution, lateral in zip(self.fuse, laterals[1:], strict=True):
            # Odd maps halve upwards, as the backbone's strided convolutions do.
            outputs.append(convolution(F.max_pool2d(outputs[-1], 2, ceil_mode=True) + lateral))
        for index in range(self.extra_levels):
            outputs.append(self._extra_level(index, outputs[-1]))
        # Under autocast convolutions give 16 bits, residual additions what is added; heads want one type.
        return tuple(level.to(outputs[-1].dtype) for level in outputs)

    def _extra_level(self, index: int, coarsest: Tensor) -> Tensor:
        if not self.extra:
            return F.max_pool2d(coarsest, kernel_size=1, stride=2)
        level: Tensor = self.extra[index](F.relu(coarsest) if index else coarsest)
        return level
