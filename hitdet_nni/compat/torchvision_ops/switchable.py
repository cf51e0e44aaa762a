"""Switchable atrous convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvAWS2d
from mmengine.model import constant_init
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size

from hitdet_nni.compat.torchvision_ops.deformable import deform_conv2d


class SAConv2d(ConvAWS2d):  # type: ignore[misc]
    """A convolution that chooses at each position between its dilation and three times that, ``SAC`` in the registry.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: (height, width) or one number for both; with ``use_deform`` 3.
        stride: In pixels.
        padding: Zeros on each side, in pixels.
        dilation: The smaller distance of the taps, in pixels.
        groups: Groups of channels that are convolved apart.
        bias: Whether there is a bias among the parameters. As in mmcv, it is not added.
        use_deform: Whether both convolutions are deformable and predict their offsets.

    Shape:
        (N, C, H, W) to (N, out, H', W'); H and W from 3 on.

    Source:
        Qiao et al., DetectoRS, CVPR 2021, section 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        use_deform: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.use_deform = use_deform
        self.switch = nn.Conv2d(in_channels, 1, kernel_size=1, stride=stride)
        self.weight_diff = nn.Parameter(torch.empty_like(self.weight))
        self.pre_context = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.post_context = nn.Conv2d(out_channels, out_channels, kernel_size=1)
        if use_deform:
            self.offset_s = nn.Conv2d(in_channels, 18, kernel_size=3, padding=1, stride=stride)
            self.offset_l = nn.Conv2d(in_channels, 18, kernel_size=3, padding=1, stride=stride)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the convolution of the smaller dilation, without context and with equal weights for both."""
        constant_init(self.switch, 0, bias=1)
        nn.init.zeros_(self.weight_diff)
        constant_init(self.pre_context, 0)
        constant_init(self.post_context, 0)
        if self.use_deform:
            constant_init(self.offset_s, 0)
            constant_init(self.offset_l, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the features."""
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1))
        surroundings = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel_size=5, stride=1)
        switch = self.switch(surroundings)
        weight = self._get_weight(self.weight)
        if self.use_deform:
            near = self._convolve(x, weight, 1, self.offset_s(surroundings))
            far = self._convolve(x, weight + self.weight_diff, 3, self.offset_l(surroundings))
        else:
            near = self._convolve(x, weight, 1)
            far = self._convolve(x, weight + self.weight_diff, 3)
        output = switch * near + (1 - switch) * far
        result: Tensor = output + self.post_context(F.adaptive_avg_pool2d(output, 1))
        return result

    def _convolve(self, x: Tensor, weight: Tensor, rate: int, offset: Tensor | None = None) -> Tensor:
        """Convolve with padding and dilation ``rate`` times the layer's."""
        padding, dilation = ([rate * size for size in sizes] for sizes in (self.padding, self.dilation))
        if offset is None:
            return F.conv2d(x, weight, None, self.stride, padding, dilation, self.groups)
        return deform_conv2d(x, offset, weight, self.stride, tuple(padding), tuple(dilation), self.groups)
