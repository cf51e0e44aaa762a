"""CARAFE: upsampling by kernels that are predicted for each position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import normal_init, xavier_init
from torch import Tensor, nn


def carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Weight, at each position of the output, the input's neighbourhood by the kernel of that position.

    Args:
        features: (N, C, H, W).
        masks: The kernels, (N, group_size * kernel_size^2, scale_factor * H, scale_factor * W).
        kernel_size: Side of the neighbourhood in input pixels, odd; what lies outside the image is zero.
        group_size: Groups of channels with kernels of their own.
        scale_factor: Pixels of the output per pixel of the input, along each side.

    Returns:
        (N, C, scale_factor * H, scale_factor * W).

    Raises:
        ValueError: If the sizes do not fit each other.

    Source:
        Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019, equation 3.
    """
    batch, channels, height, width = features.shape
    if kernel_size < 1 or kernel_size % 2 == 0 or scale_factor < 1 or channels % group_size:
        raise ValueError(
            f"kernel_size={kernel_size}, group_size={group_size}, scale_factor={scale_factor}; allowed: an odd kernel, "
            f"a divisor of {channels} channels, at least 1"
        )
    expected = (batch, group_size * kernel_size**2, height * scale_factor, width * scale_factor)
    if tuple(masks.shape) != expected:
        raise ValueError(f"masks {tuple(masks.shape)}; allowed for features {tuple(features.shape)}: {expected}")
    group = (batch, group_size, channels // group_size)
    padded = F.pad(features, [kernel_size // 2] * 4)
    padded = padded.reshape(*group, *padded.shape[2:])
    # (N, groups, taps, 1, H, scale, W, scale) beside (N, groups, channels of a group, H, 1, W, 1)
    fine = (height, scale_factor, width, scale_factor)
    kernels = masks.reshape(batch, group_size, kernel_size**2, 1, *fine)
    kind = torch.promote_types(features.dtype, masks.dtype)
    output = torch.zeros(*group, *fine, dtype=kind, device=features.device)
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        neighbour = padded[..., row : row + height, column : column + width]
        output.addcmul_(neighbour[..., :, None, :, None], kernels[:, :, tap])
    return output.reshape(batch, channels, *expected[2:])


carafe_naive = carafe
"""mmcv's plainer program for the same result."""


class CARAFE(nn.Module):
    """Module form of :func:`carafe`, with its arguments."""

    def __init__(self, kernel_size: int, group_size: int, scale_factor: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.group_size = group_size
        self.scale_factor = scale_factor

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Upsample features (N, C, H, W) by the given kernels."""
        return carafe(features, masks, self.kernel_size, self.group_size, self.scale_factor)


class CARAFENaive(CARAFE):
    """The same as :class:`CARAFE`, as :func:`carafe_naive` is the same function."""


class CARAFEPack(nn.Module):
    """Upsampling that predicts its kernels, ``carafe`` in the registry.

    Args:
        channels: Channels of the input, and of the output.
        scale_factor: Pixels of the output per pixel of the input, along each side.
        up_kernel: Side of the neighbourhood that is weighted, in input pixels, odd.
        up_group: Groups of channels with kernels of their own.
        encoder_kernel: Side of the convolution that predicts the kernels, in pixels.
        encoder_dilation: Distance of its taps, in pixels.
        compressed_channels: Channels that it sees.

    Shape:
        (N, C, H, W) to (N, C, scale_factor * H, scale_factor * W).

    Source:
        Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019, section 3.2.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        up_kernel: int = 5,
        up_group: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.scale_factor = scale_factor
        self.up_kernel = up_kernel
        self.up_group = up_group
        self.encoder_kernel = encoder_kernel
        self.encoder_dilation = encoder_dilation
        self.compressed_channels = compressed_channels
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            up_group * up_kernel**2 * scale_factor**2,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights so that the upsampling starts near a plain mean of the neighbourhood."""
        # The encoder is drawn twice as in mmcv, so that a seed gives the same weights.
        for conv in (self.channel_compressor, self.content_encoder):
            xavier_init(conv, distribution="uniform")
        normal_init(self.content_encoder, std=0.001)

    def kernel_normalizer(self, mask: Tensor) -> Tensor:
        """Arrange predictions (N, groups * taps * scale^2, H, W) as kernels of the output that sum to 1."""
        kernels = F.pixel_shuffle(mask, self.scale_factor)
        taps = kernels.reshape(len(mask), self.up_group, self.up_kernel**2, *kernels.shape[2:])
        return taps.softmax(dim=2).flatten(1, 2)

    def feature_reassemble(self, x: Tensor, mask: Tensor) -> Tensor:
        """Upsample features (N, C, H, W) by kernels of the output, see :func:`carafe`."""
        return carafe(x, mask, self.up_kernel, self.up_group, self.scale_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample the features."""
        return self.feature_reassemble(x, self.kernel_normalizer(self.content_encoder(self.channel_compressor(x))))
