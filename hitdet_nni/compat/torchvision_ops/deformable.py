"""Deformable convolutions: with given offsets (and masks), and the packs that predict them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops as tv
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t as Size
from torch.nn.modules.utils import _pair


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve with samples moved by ``offset`` and scaled by ``mask`` (none: 1), in the type of ``offset``.

    Offsets whose sample lies on or beyond the first row or column outside the image have no gradient, as in mmcv. Of
    offsets and masks of a larger map than the output the first numbers of each sample are taken, as mmcv does: mmdet's
    DyHead convolves three levels with the offsets of the middle one.

    Shape:
        input (N, C, H, W); offset (N, deform_groups * 2 * kh * kw, H', W'), (dy, dx) per tap, in pixels; mask
        (N, deform_groups * kh * kw, H', W'); weight (out, C / groups, kh, kw); bias (out,).

    Raises:
        ValueError: If the shapes do not fit each other, ``deform_groups`` or ``groups``.
    """
    size = _output_size(input, weight, _pair(stride), _pair(padding), _pair(dilation))
    offset, mask = _leading(offset, size), None if mask is None else _leading(mask, size)
    return _deform_conv(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)


def _output_size(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    height, width = (
        (input.size(2 + axis) + 2 * padding[axis] - dilation[axis] * (weight.size(2 + axis) - 1) - 1) // stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def _leading(part: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the first numbers of each sample of (N, C, h, w) as (N, C, H', W'), or all where they are too few."""
    count = part.size(1) * math.prod(size)
    if tuple(part.shape[2:]) == size or part[:1].numel() < count:
        return part
    return part.flatten(1)[:, :count].reshape(len(part), part.size(1), *size)


def _deform_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
    deform_groups: int,
) -> Tensor:
    taps = weight.size(2) * weight.size(3)
    if offset.size(1) != 2 * deform_groups * taps or input.size(1) != groups * weight.size(1):
        raise ValueError(
            f"offset has {offset.size(1)} channels, weight {weight.size(1)} input channels; allowed with {taps} taps, "
            f"deform_groups={deform_groups}, groups={groups}: {2 * deform_groups * taps}, {input.size(1) / groups:g}"
        )
    strides, paddings, dilations = _pair(stride), _pair(padding), _pair(dilation)
    size = _output_size(input, weight, strides, paddings, dilations)
    sizes = [tuple(part.shape[2:]) for part in (offset, mask) if part is not None]
    if min(size) < 1 or any(given != size for given in sizes):
        raise ValueError(f"offset (and mask) of {sizes} for an output of {size}; allowed: its size, at least 1 x 1")
    # Where offsets are predicted under autocast, they alone are in half precision. torchvision has no bfloat16.
    result_type = offset.dtype
    kind = torch.float32 if result_type == torch.bfloat16 else result_type
    input, offset, weight = input.to(kind), offset.to(kind), weight.to(kind)
    bias, mask = (None if part is None else part.to(kind) for part in (bias, mask))
    if offset.requires_grad:
        inside = _inside(offset.detach(), input.shape[2:], weight.shape[2:], strides, paddings, dilations)
        offset = torch.where(inside, offset, offset.detach())
    output: Tensor = tv.deform_conv2d(input, offset, weight, bias, strides, paddings, dilations, mask)
    return output.to(result_type)


def _inside(
    offset: Tensor,
    image: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return which offsets move a sample to less than a pixel from the image, in the shape of ``offset``.

    torchvision gives the offsets of samples at exactly -1 the slope towards the image. With padding many samples lie
    there when a training starts, with all offsets zero.
    """
    # (N, deform_groups, kh, kw, 2, H', W')
    moves = offset.reshape(len(offset), offset.size(1) // (2 * math.prod(kernel)), *kernel, 2, *offset.shape[2:])
    inside = torch.ones((), dtype=torch.bool, device=offset.device)
    for axis in (0, 1):
        taps = torch.arange(kernel[axis], device=offset.device) * dilation[axis] - padding[axis]
        starts = torch.arange(offset.size(2 + axis), device=offset.device) * stride[axis]
        # (kh, 1, H', 1) of the rows, (kw, 1, W') of the columns
        positions = (taps.view(-1, *[1] * (3 - axis)) + starts.view(-1, *[1] * (1 - axis))) + moves[:, :, :, :, axis]
        inside = inside & (positions > -1) & (positions < image[axis])
    return inside[:, :, :, :, None].expand_as(moves).flatten(1, 4)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Call :func:`modulated_deform_conv2d` without mask and bias; ``im2col_step`` has no effect.

    Raises:
        ValueError: If ``bias`` is true, or the offsets have another size than the output.
    """
    if bias:
        raise ValueError("deform_conv2d bias=True; allowed: False")
    return _deform_conv(input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups)


class _DeformConv(nn.Module):
    """The attributes and the weight that both deformable convolutions share, named as in nn.Conv2d."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deform_groups: int,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups}; allowed: a divisor of {in_channels} and of {out_channels} channels")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deform_groups = deform_groups
        self.transposed = False
        self.output_padding = (0,)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))

    def _offset_conv(self, channels_per_tap: int) -> nn.Conv2d:
        """Return the convolution that predicts ``channels_per_tap`` numbers for each tap of each group."""
        channels = channels_per_tap * self.deform_groups * math.prod(self.kernel_size)
        return nn.Conv2d(self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation)


class DeformConv2d(_DeformConv):
    """Deformable convolution without bias.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: (height, width) or one number for both.
        stride: In pixels.
        padding: Zeros on each side, in pixels.
        dilation: Distance of the taps, in pixels.
        groups: Groups of channels that are convolved apart.
        deform_groups: Groups of input channels with offsets of their own.
        bias: Must be False.
        im2col_step: Kept for mmcv's callers; it has no effect.

    Shape:
        See :func:`modulated_deform_conv2d`.

    Raises:
        ValueError: If ``bias`` is true or ``groups`` does not divide the channels.

    Source:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.1.
    """

    @deprecated_api_warning({"deformable_groups": "deform_groups"}, cls_name="DeformConv2d")  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
    ) -> None:
        if bias:
            raise ValueError("DeformConv2d bias=True; allowed: False")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups)
        self.im2col_step = im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight (He uniform, fan in)."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolve; an input smaller than the kernel is padded at its end, and the output cut again."""
        pad_h, pad_w = (max(kernel - size, 0) for kernel, size in zip(self.kernel_size, x.shape[2:], strict=True))
        x, offset = F.pad(x, (0, pad_w, 0, pad_h)), F.pad(offset, (0, pad_w, 0, pad_h))
        out = self._convolve(x, offset)
        return out[:, :, : out.size(2) - pad_h, : out.size(3) - pad_w]

    def _convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv2d(
            x, offset, self.weight, self.stride, self.padding, self.dilation, self.groups, self.deform_groups
        )


class DeformConv2dPack(DeformConv2d):
    """A :class:`DeformConv2d` that predicts its offsets, ``DCN`` in the registry; used like nn.Conv2d."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._offset_conv(2)
        self.init_offset()

    def init_offset(self) -> None:
        """Let the layer predict zeros until it is trained: it starts as a plain convolution."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (N, C, H, W)."""
        return self._convolve(x, self.conv_offset(x))


class ModulatedDeformConv2d(_DeformConv):
    """Modulated deformable convolution.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: (height, width) or one number for both.
        stride: In pixels.
        padding: Zeros on each side, in pixels.
        dilation: Distance of the taps, in pixels.
        groups: Groups of channels that are convolved apart.
        deform_groups: Groups of input channels with offsets and masks of their own.
        bias: Add a bias.

    Shape:
        See :func:`modulated_deform_conv2d`.

    Raises:
        ValueError: If ``groups`` does not divide the channels.

    Source:
        Zhu et al., Deformable ConvNets v2, CVPR 2019, section 3.2.
    """

    @deprecated_api_warning({"deformable_groups": "deform_groups"}, cls_name="ModulatedDeformConv2d")  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight from +-1 / sqrt(fan in) and set the bias to zero."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve with the given offsets and masks."""
        return modulated_deform_conv2d(
            x,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )


class ModulatedDeformConv2dPack(ModulatedDeformConv2d):
    """A :class:`ModulatedDeformConv2d` that predicts offsets and masks, ``DCNv2`` in the registry."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._offset_conv(3)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the parent does, and the prediction to zeros: mmengine calls this after its initialisers."""
        super().init_weights()
        if hasattr(self, "conv_offset"):  # not yet when the parent's constructor calls
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve (N, C, H, W)."""
        prediction = self.conv_offset(x)
        offset, mask = prediction.split([prediction.size(1) // 3 * 2, prediction.size(1) // 3], dim=1)
        return super().forward(x, offset, mask.sigmoid())
