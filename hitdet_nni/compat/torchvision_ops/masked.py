"""Convolution at some positions only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size
from torch.nn.modules.utils import _pair


def masked_conv2d(
    features: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, padding: Size = 0, stride: Size = 1
) -> Tensor:
    """Convolve where ``mask`` is positive, and leave zeros elsewhere.

    Args:
        features: (1, C, H, W).
        mask: (1, H, W).
        weight: (out, C, kh, kw).
        bias: (out,), or none.
        padding: Zeros on each side, in pixels; every position of the mask has to be one of the output.
        stride: Must be 1.

    Returns:
        (1, out, H', W'). It has gradients, where mmcv's has none.

    Raises:
        ValueError: For another stride, or sizes that do not fit each other.
    """
    if _pair(stride) != (1, 1):
        raise ValueError(f"masked_conv2d stride={stride}; allowed: 1")
    if len(features) != 1 or mask.shape != (1, *features.shape[2:]) or features.size(1) != weight.size(1):
        raise ValueError(
            f"features {tuple(features.shape)}, mask {tuple(mask.shape)}, weight {tuple(weight.shape)}; allowed: one "
            "image, a mask of its size, as many input channels"
        )
    pad_h, pad_w = _pair(padding)
    kernel = tuple(weight.shape[2:])
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    windows = padded.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1)  # (C, H', W', kh, kw), nothing copied
    rows, columns = (mask[0] > 0).nonzero(as_tuple=True)
    height, width = windows.shape[1:3]
    if len(rows) and (int(rows.max()) >= height or int(columns.max()) >= width):
        raise ValueError(
            f"the mask has positions outside the output of {height} x {width} that padding={padding} gives"
        )
    taken = windows[:, rows, columns].transpose(0, 1).flatten(1)  # (positions, C * kh * kw)
    output = features.new_zeros(weight.size(0), height, width)
    output[:, rows, columns] = F.linear(taken, weight.flatten(1), bias).t().to(output.dtype)
    return output[None]


class MaskedConv2d(nn.Conv2d):
    """A convolution that can be told where its result is needed.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: (height, width) or one number for both.
        stride: In pixels; with a mask 1.
        padding: Zeros on each side, in pixels.
        dilation: Distance of the taps, in pixels; with a mask 1.
        groups: Groups of channels that are convolved apart; with a mask 1.
        bias: Add a bias.

    Shape:
        input (N, C, H, W), and a mask (1, H, W) or none, to (N, out, H', W'); N is 1 with a mask.
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
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve everywhere, or where the mask is positive.

        Raises:
            ValueError: If there is a mask that :func:`masked_conv2d` or the layer's stride, dilation or groups do not
                allow.
        """
        if mask is None:
            return super().forward(input)
        # mmcv ignores these two, and the stride, and so computes another convolution than the layer is without a mask.
        if (self.stride, self.dilation, self.groups) != ((1, 1), (1, 1), 1):
            raise ValueError(
                f"MaskedConv2d stride={self.stride}, dilation={self.dilation}, groups={self.groups}; allowed with a "
                "mask: 1"
            )
        return masked_conv2d(input, mask, self.weight, self.bias, _pair(self.padding))
