"""Multi-scale deformable attention: each query reads a few points of each level of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, constant_init, xavier_init
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum weighted bilinear samples of all levels.

    Args:
        value: Features of the levels, one after another, (N, sum of H * W, heads, channels of a head).
        value_spatial_shapes: (height, width) of each level, (levels, 2).
        sampling_locations: (x, y) as shares of the level, (N, queries, heads, levels, points, 2); what lies outside
            0..1 is zero.
        attention_weights: (N, queries, heads, levels, points).

    Returns:
        (N, queries, heads * channels of a head), of the type of ``value``.

    Source:
        Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    batch, _, heads, channels = value.shape
    shapes: list[list[int]] = torch.as_tensor(value_spatial_shapes).tolist()
    # A half-precision location would miss its pixel on a large level: the sum is taken in the wider of the types.
    kind = torch.promote_types(value.dtype, sampling_locations.dtype)
    grids = (
        (2 * sampling_locations.to(kind) - 1).transpose(1, 2).flatten(0, 1)
    )  # (N * heads, queries, levels, points, 2)
    weights = (
        attention_weights.to(kind).transpose(1, 2).flatten(0, 1)[:, None]
    )  # (N * heads, 1, queries, levels, points)
    output = value.new_zeros(batch * heads, channels, sampling_locations.size(1), dtype=kind)
    for level, features in enumerate(torch.split(value, [height * width for height, width in shapes], dim=1)):
        maps = features.to(kind).permute(0, 2, 3, 1).reshape(batch * heads, channels, *shapes[level])
        sampled = F.grid_sample(maps, grids[:, :, level], align_corners=False)  # (N * heads, channels, queries, points)
        output = output + (sampled * weights[:, :, :, level]).sum(dim=-1)
    return output.view(batch, heads * channels, -1).transpose(1, 2).contiguous().to(value.dtype)


class MultiScaleDeformableAttnFunction:
    """Calls :func:`multi_scale_deformable_attn_pytorch` as mmcv's program for GPUs is called."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Ignore the start of each level, which follows from the shapes (levels, 2), and ``im2col_step``."""
        return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)


class MultiScaleDeformableAttention(BaseModule):  # type: ignore[misc]
    """Attention to points that each query predicts around its reference points.

    Args:
        embed_dims: Channels of queries, values and output.
        num_heads: Heads; a divisor of ``embed_dims``.
        num_levels: Levels of the pyramid.
        num_points: Points per head and level.
        im2col_step: Kept for mmcv's callers; it has no effect.
        dropout: Share of the output that is dropped in training, 0..1.
        batch_first: Whether queries and values are (N, queries, channels) instead of (queries, N, channels).
        norm_cfg: Kept for mmcv's callers; it has no effect.
        init_cfg: As of mmengine's BaseModule; the weights are drawn by :meth:`init_weights` all the same.
        value_proj_ratio: Channels of the projected values as a multiple of ``embed_dims``.

    Shape:
        See :meth:`forward`.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.

    Source:
        Zhu et al., Deformable DETR, ICLR 2021, section 4.1 and appendix A.4.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_heads:
            raise ValueError(f"num_heads={num_heads}; allowed: a divisor of embed_dims={embed_dims}")
        self.norm_cfg = norm_cfg
        self.dropout = nn.Dropout(dropout)
        self.batch_first = batch_first
        self.im2col_step = im2col_step
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        value_dims = int(embed_dims * value_proj_ratio)
        self.sampling_offsets = nn.Linear(embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, value_dims)
        self.output_proj = nn.Linear(value_dims, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the projections, and let each head look in a direction of its own, its i-th point i pixels away."""
        constant_init(self.sampling_offsets, 0)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angles.cos(), angles.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)[:, None]
        offsets = (direction[:, None, None] * distance).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        constant_init(self.attention_weights, 0)
        xavier_init(self.value_proj, distribution="uniform")
        xavier_init(self.output_proj, distribution="uniform")
        self._is_init = True

    @deprecated_api_warning({"residual": "identity"}, cls_name="MultiScaleDeformableAttention")  # type: ignore[untyped-decorator]
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return ``identity`` plus what the queries read.

        Args:
            query: (queries, N, embed_dims), with ``batch_first`` (N, queries, embed_dims).
            key: Has no effect.
            value: Features of the levels, one after another, (values, N, embed_dims) or (N, values, embed_dims); none:
                the queries themselves.
            identity: Added to the output, of its shape; none: the queries.
            query_pos: Added to the queries before anything is predicted of them, of their shape.
            key_padding_mask: (N, values), true where a value counts as zero.
            reference_points: As shares of the image: (x, y), (N, queries, levels, 2), or (x, y, width, height),
                (N, queries, levels, 4).
            spatial_shapes: (height, width) of each level, (levels, 2).
            level_start_index: Has no effect: it follows from the shapes.
            **kwargs: Have no effect.

        Returns:
            Of the shape of ``query``.

        Raises:
            ValueError: If reference points or shapes are missing or do not fit.
        """
        if reference_points is None or reference_points.size(-1) not in (2, 4):
            given = None if reference_points is None else tuple(reference_points.shape)
            raise ValueError(f"reference_points {given}; allowed: (N, queries, levels, 2 or 4)")
        identity = query if identity is None else identity
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        if spatial_shapes is None or int(spatial_shapes.prod(dim=1).sum()) != value.size(1):
            sizes = None if spatial_shapes is None else spatial_shapes.tolist()
            raise ValueError(f"spatial_shapes {sizes}; allowed: as many positions as values, {value.size(1)}")
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        layout = (self.num_heads, self.num_levels, self.num_points)
        weights = (
            self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, layout[1:])
        )
        offsets = self.sampling_offsets(query).unflatten(-1, (*layout, 2))
        reference = reference_points[:, :, None, :, None]
        if reference.size(-1) == 2:
            locations = reference + offsets / spatial_shapes.flip(-1)[:, None]
        else:
            locations = reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        read = multi_scale_deformable_attn_pytorch(
            value.unflatten(-1, (self.num_heads, -1)), spatial_shapes, locations, weights
        )
        output = self.output_proj(read)
        result: Tensor = self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity
        return result
