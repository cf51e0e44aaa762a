"""HitBoxHead: searched blocks on the pooled RoIs, one fully connected layer, class and box outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from hitdet_nni.model.searchable import Candidates, searched_layer


@MODELS.register_module()
class HitBoxHead(ConvFCBBoxHead):  # type: ignore[misc]
    """Box head whose blocks are searched, or fixed where each entry of ``operators`` is one name.

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
