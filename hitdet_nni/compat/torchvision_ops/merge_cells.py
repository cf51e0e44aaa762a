"""The merge cells of NAS-FPN: two feature maps of different sizes become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn


class BaseMergeCell(nn.Module):
    """Bring two feature maps to one size and merge them; subclasses say how in ``_binary_op``.

    Args:
        fused_channels: Channels of the merged map.
        out_channels: Channels of the result, and of the inputs where they are convolved.
        with_out_conv: Convolve the merged map.
        out_conv_cfg: ConvModule arguments of ``out_conv``; None: 3 x 3, padding 1, with bias.
        out_norm_cfg: Normalisation of ``out_conv``.
        out_conv_order: Order inside ``out_conv``.
        with_input1_conv: Convolve the first input, 3 x 3.
        with_input2_conv: Convolve the second input, 3 x 3.
        input_conv_cfg: Kind of the input convolutions; None: nn.Conv2d.
        input_norm_cfg: Normalisation of the input convolutions.
        upsample_mode: ``"nearest"`` or ``"bilinear"``.

    Shape:
        Two maps (N, C, ., .) to (N, out_channels, height, width).

    Raises:
        ValueError: For another ``upsample_mode``.

    Source:
        Ghiasi et al., NAS-FPN, CVPR 2019, section 3.1.
    """

    def __init__(
        self,
        fused_channels: int | None = 256,
        out_channels: int | None = 256,
        with_out_conv: bool = True,
        out_conv_cfg: Mapping[str, Any] | None = None,
        out_norm_cfg: Mapping[str, Any] | None = None,
        out_conv_order: tuple[str, ...] = ("act", "conv", "norm"),
        with_input1_conv: bool = False,
        with_input2_conv: bool = False,
        input_conv_cfg: Mapping[str, Any] | None = None,
        input_norm_cfg: Mapping[str, Any] | None = None,
        upsample_mode: str = "nearest",
    ) -> None:
        super().__init__()
        if upsample_mode not in ("nearest", "bilinear"):
            raise ValueError(f"upsample_mode={upsample_mode!r}; allowed: nearest, bilinear")
        self.with_out_conv = with_out_conv
        self.with_input1_conv = with_input1_conv
        self.with_input2_conv = with_input2_conv
        self.upsample_mode = upsample_mode
        if with_out_conv:
            conv_cfg = out_conv_cfg or {"groups": 1, "kernel_size": 3, "padding": 1, "bias": True}
            self.out_conv = ConvModule(
                fused_channels, out_channels, **conv_cfg, norm_cfg=out_norm_cfg, order=out_conv_order
            )

        def input_conv(wanted: bool) -> nn.Module:
            if not wanted:
                return nn.Sequential()
            conv: nn.Module = ConvModule(
                out_channels, out_channels, 3, padding=1, conv_cfg=input_conv_cfg, norm_cfg=input_norm_cfg, bias=True
            )
            return conv

        self.input1_conv = input_conv(with_input1_conv)
        self.input2_conv = input_conv(with_input2_conv)

    def _binary_op(self, x1: Tensor, x2: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how two maps are merged")

    def _resize(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Interpolate to a larger size, max-pool to a smaller one; sizes compare as tuples: by height, then width."""
        if x.shape[-2:] == size:
            return x
        if x.shape[-2:] < size:
            return F.interpolate(x, size=size, mode=self.upsample_mode)
        pad_h, pad_w = -x.size(-2) % size[0], -x.size(-1) % size[1]
        x = F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        return F.max_pool2d(x, kernel_size=(x.size(-2) // size[0], x.size(-1) // size[1]))

    def forward(self, x1: Tensor, x2: Tensor, out_size: tuple[int, ...] | None = None) -> Tensor:
        """Merge two maps at ``out_size``, (height, width) in pixels; None: the larger of both."""
        size = tuple(max(x1.shape[2:], x2.shape[2:]) if out_size is None else out_size)
        merged = self._binary_op(self._resize(self.input1_conv(x1), size), self._resize(self.input2_conv(x2), size))
        return self.out_conv(merged) if self.with_out_conv else merged


class SumCell(BaseMergeCell):
    """Add two maps of ``in_channels``; further arguments as in :class:`BaseMergeCell`."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **kwargs)

    def _binary_op(self, x1: Tensor, x2: Tensor) -> Tensor:
        return x1 + x2


class ConcatCell(BaseMergeCell):
    """Concatenate two maps of ``in_channels``; further arguments as in :class:`BaseMergeCell`."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__(2 * in_channels, out_channels, **kwargs)

    def _binary_op(self, x1: Tensor, x2: Tensor) -> Tensor:
        return torch.cat([x1, x2], dim=1)


class GlobalPoolingCell(BaseMergeCell):
    """Add to the second map the first, gated by the second's channel means; arguments as in :class:`BaseMergeCell`."""

    def __init__(self, in_channels: int | None = None, out_channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        self.global_pool = nn.AdaptiveAvgPool2d((1, 1))

    def _binary_op(self, x1: Tensor, x2: Tensor) -> Tensor:
        gate: Tensor = self.global_pool(x2).sigmoid()
        return x2 + gate * x1
