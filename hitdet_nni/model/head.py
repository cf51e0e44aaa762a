"""The searched heads: HitBoxHead on pooled RoIs, HitRetinaHead on every level of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import RetinaHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Component
from hitdet_nni.errors import InputError
from hitdet_nni.model.level_norm import select_level, separate_statistics
from hitdet_nni.model.searchable import Candidates, searched_layer


@MODELS.register_module()
class HitBoxHead(ConvFCBBoxHead):  # type: ignore[misc]
    """Box head whose blocks are searched, or fixed where each entry of ``operators`` is one name.

    Behind the blocks stand one fully connected layer and the class and box outputs.

    Args:
        operators: One entry a block: an operator name, or the names of its candidates.
        in_channels: Channels of the pooled RoIs.
        width: Channels of the blocks.
        fc_out_channels: Outputs of the fully connected layer.
        kwargs: Arguments of mmdet's ``BBoxHead`` (``num_classes``, ``roi_feat_size``, losses, box coder, ...).

    Shape:
        ``[R, in_channels, 7, 7]`` to class scores ``[R, num_classes + 1]`` and box offsets ``[R, 4 * num_classes]``.

    Raises:
        InputError: If a name is not an operator's.

    Source:
        Section 3.3.
    """

    component: Component = "head"

    def __init__(
        self,
        operators: Sequence[Candidates],
        in_channels: int = 256,
        width: int = 256,
        fc_out_channels: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_shared_fcs=1, in_channels=width, fc_out_channels=fc_out_channels, **kwargs)
        self.blocks = nn.Sequential(
            *(
                searched_layer("head", index, entry, in_channels if index == 0 else width, width, 1)
                for index, entry in enumerate(operators)
            )
        )
        self.init_cfg.append({"type": "Kaiming", "layer": "Conv2d", "mode": "fan_out"})

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Map pooled RoIs ``[R, in_channels, 7, 7]`` to class scores and box offsets."""
        outputs: tuple[Tensor, Tensor] = super().forward(self.blocks(rois))
        return outputs


@MODELS.register_module()
class HitRetinaHead(RetinaHead):  # type: ignore[misc]
    """RetinaNet's head, the blocks of whose towers are searched, or fixed where an entry of ``operators`` is one name.

    Both towers are shared by all levels; the statistics of their batch normalisations are each level's own.

    Args:
        operators: One entry a block, an operator name or the names of its candidates: first those of the
            classification tower, then as many of the box tower.
        in_channels: Channels of the pyramid.
        width: Channels of the blocks.
        kwargs: Arguments of mmdet's ``AnchorHead`` (``num_classes``, ``anchor_generator``, losses, box coder, ...).

    Shape:
        L maps ``[N, in_channels, H_i, W_i]`` to L class scores ``[N, A * num_classes, H_i, W_i]`` and L box offsets
        ``[N, 4 * A, H_i, W_i]``, A anchors a place.

    Raises:
        InputError: If the number of entries is odd, or a name is not an operator's.

    Source:
        Section 4.3, extension to a one-stage detector; Lin et al., ICCV 2017, section 4, for what is not searched.
    """

    component: Component = "head"

    def __init__(
        self, operators: Sequence[Candidates], in_channels: int = 256, width: int = 256, **kwargs: Any
    ) -> None:
        if len(operators) % 2:
            allowed = "an even number, half of them for each tower"
            raise InputError(f"got {len(operators)} entries", key="head.operators", allowed=allowed)
        # Without convolutions of its own, mmdet's head is the two output layers behind whatever the towers hold.
        super().__init__(in_channels=width, feat_channels=width, stacked_convs=0, **kwargs)
        depth = len(operators) // 2
        blocks = [
            searched_layer("head", index, entry, width if index % depth else in_channels, width, 1)
            for index, entry in enumerate(operators)
        ]
        self.cls_convs = nn.ModuleList(blocks[:depth])
        self.reg_convs = nn.ModuleList(blocks[depth:])
        separate_statistics(self, self.prior_generator.num_levels)
        self.init_cfg = {
            "type": "Kaiming",
            "layer": "Conv2d",
            "mode": "fan_out",
            "override": [
                {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
                {"type": "Normal", "name": "retina_reg", "std": 0.01},
            ],
        }

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map the levels of the pyramid, fine to coarse, to class scores and box offsets of each."""
        outputs: tuple[list[Tensor], list[Tensor]] = multi_apply(self._forward_level, range(len(x)), x)
        return outputs

    def _forward_level(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        select_level(self, level)
        outputs: tuple[Tensor, Tensor] = self.forward_single(feature)
        return outputs
