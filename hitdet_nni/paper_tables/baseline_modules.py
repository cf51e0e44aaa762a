"""What the paper's baselines need and mmdet does not have, as mmdet modules: backbones, a neck, a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import SSDHead
from mmdet.models.necks import NASFPN
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from hitdet_nni.errors import InputError
from hitdet_nni.model.backbone import HitBackbone
from hitdet_nni.operators.blocks import conv_bn


@MODELS.register_module()
class FBNet(HitBackbone):
    """FBNet: our backbone's stem and inverted residuals, with one 1x1 convolution behind them.

    Args:
        last_channels: Channels of the last convolution, which are those of C4.
        kwargs: Arguments of :class:`hitdet_nni.model.backbone.HitBackbone`.

    Source:
        Wu et al., FBNet, CVPR 2019, Table 1.
    """

    def __init__(self, last_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tail = conv_bn(kwargs["widths"][-1], last_channels, relu=True)


def _separable(in_channels: int, out_channels: int, kernel_size: int, stride: int, relu: bool) -> nn.Sequential:
    """Build a depthwise convolution and a 1x1 convolution, without an activation between."""
    return nn.Sequential(
        conv_bn(in_channels, in_channels, kernel_size, stride=stride, groups=in_channels, relu=False),
        conv_bn(in_channels, out_channels, relu=relu),
    )


class ShuffleBlock(nn.Module):
    """ShuffleNetV2's unit with a choice of branch: one half of the channels passes, the other is transformed.

    Args:
        in_channels: Channels of the input, even.
        out_channels: Channels of the output, even; ``in_channels`` at stride 1.
        stride: 1, or 2: then both branches see all channels, and the passing one is a separable convolution.
        kind: ``"3"``, ``"5"`` or ``"7"``, the kernel of a bottleneck; ``"x"``: three separable 3x3 convolutions.

    Shape:
        ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Raises:
        InputError: If ``kind`` is none of the four.

    Source:
        Chen et al., DetNAS, NeurIPS 2019, section 3.2; Ma et al., ShuffleNetV2, ECCV 2018, Figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: str) -> None:
        super().__init__()
        if kind not in ("3", "5", "7", "x"):
            raise InputError(f"unknown block {kind!r}", key="blocks", allowed=("3", "5", "7", "x"))
        middle = out_channels // 2
        kernel_size = 3 if kind == "x" else int(kind)
        passing, given = (in_channels, in_channels) if stride == 2 else (in_channels // 2, in_channels // 2)
        computed = out_channels - passing
        self.pass_on = _separable(given, passing, kernel_size, stride, relu=True) if stride == 2 else nn.Identity()
        if kind == "x":
            self.transform = nn.Sequential(
                _separable(given, middle, 3, stride, relu=True),
                _separable(middle, middle, 3, 1, relu=True),
                _separable(middle, computed, 3, 1, relu=True),
            )
        else:
            self.transform = nn.Sequential(
                conv_bn(given, middle, relu=True), _separable(middle, computed, kernel_size, stride, relu=True)
            )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Transform every second channel, or all of them at stride 2."""
        passing, given = (x, x) if self.stride == 2 else (x[:, 0::2], x[:, 1::2])
        return torch.cat((self.pass_on(passing), self.transform(given)), dim=1)


@MODELS.register_module()
class DetNAS(BaseModule):  # type: ignore[misc]
    """DetNAS: a stem, four stages of ShuffleNetV2 units of chosen kinds, and one 1x1 convolution.

    Args:
        stem_channels: Channels of the stride-2 3x3 stem.
        widths: Channels of each stage; its first block has stride 2.
        blocks: For each stage a letter a block, see :class:`ShuffleBlock`.
        last_channels: Channels of the last convolution, which are those of C4.
        init_cfg: mmengine initialisation config; by default Kaiming normal (fan out) for convolutions.

    Shape:
        ``[N, 3, H, W]`` to one map a stage, strides 4, 8, 16, 32; the last has ``last_channels``.

    Raises:
        InputError: If a letter means no block.

    Source:
        Chen et al., DetNAS, NeurIPS 2019, Table 1.
    """

    def __init__(
        self, stem_channels: int, widths: Sequence[int], blocks: Sequence[str], last_channels: int, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Conv2d", "mode": "fan_out"})
        self.stem = _biased_conv(3, stem_channels, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = stem_channels
        for width, kinds in zip(widths, blocks, strict=True):
            stage = nn.Sequential()
            for index, kind in enumerate(kinds):
                stage.append(ShuffleBlock(channels, width, 1 if index else 2, kind))
                channels = width
            self.stages.append(stage)
        self.last = _biased_conv(channels, last_channels, 1, stride=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``[N, 3, H, W]`` to C1..C4."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = self.last(x)
        return tuple(features)


def _biased_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


@MODELS.register_module()
class PooledInputNASFPN(NASFPN):  # type: ignore[misc]
    """mmdet's NAS-FPN with the coarsest level made from the backbone's last map, max-pooled, and not from its lateral.

    Args:
        in_channels: Channels of each backbone map, the last one twice.
        kwargs: Further arguments of mmdet's ``NASFPN``.

    Source:
        Ghiasi et al., NAS-FPN, CVPR 2019, section 3.1. The extra level is how the authors of Hit-Detector built it.
    """

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse the backbone's maps ``[N, C_i, H_i, W_i]``, fine to coarse, into five levels ``[N, C, H_i, W_i]``."""
        # Odd maps halve upwards, as they do everywhere else.
        coarsest = F.max_pool2d(inputs[-1], 2, ceil_mode=True)
        levels: tuple[Tensor, ...] = super().forward((*inputs, coarsest))
        return levels


@MODELS.register_module()
class PredictingSSDHead(SSDHead):  # type: ignore[misc]
    """SSD's head, with what mmdet 3.3.0 asks every head for when it predicts, and its own SSD lacks."""

    loss_cls = None
