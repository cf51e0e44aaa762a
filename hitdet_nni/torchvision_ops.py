"""The ops of ``mmcv.ops`` that mmdet needs, on torch and torchvision alone.

Names, arguments, defaults, results and state-dict keys are those of mmcv 2.1.0, so that mmdet and checkpoints made
with a compiled mmcv work unchanged; :mod:`hitdet_nni.mmcv_ops` decides whether they are used. Boxes are
``(x1, y1, x2, y2)`` in pixels, RoIs ``(image index, x1, y1, x2, y2)`` in pixels of the input picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.ops as tv
from mmcv.cnn import ConvModule
from mmengine.utils import deprecated_api_warning
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

Array = Any
"""A torch.Tensor or a numpy.ndarray; the result is of the kind of the first argument."""
Size = int | tuple[int, ...]


def get_compiler_version() -> str:
    """Return ``"n/a"``: no compiler made these ops."""
    return "n/a"


def get_compiling_cuda_version() -> str:
    """Return ``"n/a"``: these ops bring no CUDA code of their own."""
    return "n/a"


def _checked_boxes(boxes: Array, scores: Array, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes and scores as tensors, and the boxes whose plain IoU is the IoU of ``boxes`` with ``offset``."""
    boxes, scores = torch.as_tensor(boxes), torch.as_tensor(scores)
    if boxes.dim() != 2 or boxes.size(1) != 4 or boxes.size(0) != scores.size(0):
        raise ValueError(f"boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)}; allowed: (N, 4) and (N,)")
    if offset not in (0, 1):
        raise ValueError(f"offset={offset!r}; allowed: 0, 1")
    return boxes, scores, boxes.detach() + boxes.new_tensor([0, 0, offset, offset])


def _like(template: Array, *results: Tensor) -> tuple[Array, ...]:
    return tuple(result.cpu().numpy() for result in results) if isinstance(template, np.ndarray) else results


@deprecated_api_warning({"iou_thr": "iou_threshold"})  # type: ignore[untyped-decorator]
def nms(
    boxes: Array, scores: Array, iou_threshold: float, offset: int = 0, score_threshold: float = 0, max_num: int = -1
) -> tuple[Array, Array]:
    """Keep the best box of each group of boxes that overlap.

    Args:
        boxes: (N, 4), in pixels.
        scores: (N,).
        iou_threshold: A box goes when its IoU with a better, kept one is larger.
        offset: Added to widths and heights, 0 or 1 pixels.
        score_threshold: If positive, boxes with a score not above it are dropped first.
        max_num: If positive, the most boxes that are kept.

    Returns:
        Boxes with their score (n, 5), best first, and their indices (n,) in the input.

    Raises:
        ValueError: For other shapes or another offset.
    """
    kept_boxes, kept_scores, shifted = _checked_boxes(boxes, scores, offset)
    candidates = torch.arange(len(kept_boxes), device=kept_boxes.device)
    if score_threshold > 0:
        candidates = candidates[kept_scores > score_threshold]
    keep = candidates[tv.nms(shifted[candidates], kept_scores.detach()[candidates], float(iou_threshold))]
    keep = keep[:max_num] if max_num > 0 else keep
    return _like(boxes, torch.cat([kept_boxes[keep], kept_scores[keep, None]], dim=1), keep)


@deprecated_api_warning({"iou_thr": "iou_threshold"})  # type: ignore[untyped-decorator]
def soft_nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[Array, Array]:
    """Lower the scores of boxes that overlap a better one.

    Args:
        boxes: (N, 4), in pixels.
        scores: (N,).
        iou_threshold: From this IoU on the linear and the naive method act.
        sigma: Width of the gaussian method.
        min_score: A box goes when its score has been lowered below this.
        method: ``"linear"``, ``"gaussian"`` or ``"naive"`` (plain suppression).
        offset: Added to widths and heights, 0 or 1 pixels.

    Returns:
        Boxes with their lowered score (n, 5) in the order of selection, and their indices (n,) in the input.

    Raises:
        ValueError: For other shapes, another offset or another method.

    Source:
        Bodla et al., Soft-NMS, ICCV 2017, figure 2.
    """
    decays: dict[str, Callable[[Tensor], Tensor]] = {
        "naive": lambda iou: (iou < iou_threshold).to(iou),
        "linear": lambda iou: torch.where(iou < iou_threshold, 1.0, 1 - iou),
        "gaussian": lambda iou: torch.exp(-(iou**2) / sigma),
    }
    if method not in decays:
        raise ValueError(f"method={method!r}; allowed: {', '.join(decays)}")
    all_boxes, all_scores, shifted = _checked_boxes(boxes, scores, offset)
    lowered = all_scores.detach().clone()
    remaining = torch.arange(len(lowered), device=lowered.device)
    kept: list[Tensor] = []
    while len(remaining):
        best = remaining[lowered[remaining].argmax()]
        kept.append(best)
        remaining = remaining[remaining != best]
        # The IoU of two boxes without area is 0 / 0: they do not overlap.
        iou = tv.box_iou(shifted[best, None], shifted[remaining])[0].nan_to_num(0.0)
        lowered[remaining] *= decays[method](iou)
        remaining = remaining[lowered[remaining] >= min_score]
    keep = torch.stack(kept) if kept else remaining
    return _like(boxes, torch.cat([all_boxes[keep], lowered[keep, None]], dim=1), keep)


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Mapping[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Suppress overlapping boxes of the same class.

    Args:
        boxes: (N, 4), in pixels.
        scores: (N,).
        idxs: (N,), the class or group of each box, from 0.
        nms_cfg: None only sorts by score. Otherwise ``type`` (``"nms"``, ``"soft_nms"`` or a function), that
            function's arguments, ``class_agnostic``, and ``split_thr``: from this many boxes (10000) the groups are
            suppressed one after another and ``max_num`` bounds their union.
        class_agnostic: Ignore ``idxs``. As in mmcv, it has no effect from ``split_thr`` boxes on.

    Returns:
        Boxes with their score (n, 5), best first, and their indices (n,) in the input.

    Raises:
        ValueError: For another ``type``.
    """
    if nms_cfg is None:
        ordered, order = scores.sort(descending=True)
        return torch.cat([boxes[order], ordered[:, None]], dim=1), order
    options = dict(nms_cfg)
    class_agnostic = options.pop("class_agnostic", class_agnostic)
    split_thr = options.pop("split_thr", 10000)
    kind = options.pop("type", "nms")
    named = {"nms": nms, "soft_nms": soft_nms}
    if not callable(kind) and kind not in named:
        raise ValueError(f"nms type {kind!r}; allowed: {', '.join(named)} (a compiled mmcv provides others)")
    suppress = kind if callable(kind) else named[kind]
    if not len(boxes):
        return boxes.new_zeros(0, 5), idxs.new_zeros(0, dtype=torch.long)
    # Classes are moved apart by more than the largest coordinate, so that boxes of two classes cannot overlap.
    moved = boxes if class_agnostic else boxes + (idxs.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < split_thr:
        dets, keep = suppress(moved, scores, **options)
        return torch.cat([boxes[keep], dets[:, -1:]], dim=1), keep
    max_num = options.pop("max_num", -1)
    groups = [(idxs == group).nonzero()[:, 0] for group in torch.unique(idxs)]
    found = [(group, *suppress(moved[group], scores[group], **options)) for group in groups]
    keep = torch.cat([group[kept] for group, _, kept in found])
    ordered, order = torch.cat([dets[:, -1] for _, dets, _ in found]).sort(descending=True)
    count = max_num if max_num > 0 else len(keep)
    keep, ordered = keep[order][:count], ordered[:count]
    return torch.cat([boxes[keep], ordered[:, None]], dim=1), keep


def nms_match(dets: Array, iou_threshold: float) -> list[Array]:
    """Group boxes by the kept box that suppresses them.

    Args:
        dets: Boxes with their score, (N, 5).
        iou_threshold: From this IoU on a box joins the group of the better box.

    Returns:
        Indices (n,) of each group, best box first; the groups in the order of their best boxes.
    """
    boxes = torch.as_tensor(dets).detach()
    remaining = boxes[:, -1].argsort(descending=True, stable=True)
    groups: list[Array] = []
    while len(remaining):
        joins = tv.box_iou(boxes[remaining[:1], :4], boxes[remaining, :4])[0] >= iou_threshold
        joins[0] = True
        groups.extend(_like(dets, remaining[joins]))
        remaining = remaining[~joins]
    return groups


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Average bilinear samples in each bin of each RoI, see :class:`RoIAlign`; returns (K, C, height, width)."""
    if pool_mode != "avg":
        raise NotImplementedError(f"RoIAlign pool_mode={pool_mode!r}; allowed: 'avg' (a compiled mmcv provides 'max')")
    pooled: Tensor = tv.roi_align(input, rois, _pair(output_size), spatial_scale, sampling_ratio, aligned)
    return pooled


class RoIAlign(nn.Module):
    """RoI align.

    Args:
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per picture pixel: 1 / stride.
        sampling_ratio: Samples per bin and direction; 0 takes one per feature pixel, rounded up.
        pool_mode: Only ``"avg"``.
        aligned: Move the RoIs by half a feature pixel, so that pixel centres lie at .5.
        use_torchvision: Kept for mmcv's callers; it has no effect, torchvision is always used.

    Shape:
        input (N, C, H, W) and rois (K, 5) to (K, C, height, width).

    Raises:
        NotImplementedError: When called, for another ``pool_mode``.
    """

    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool the RoIs."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.pool_mode, self.aligned
        )


def roi_pool(input: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """Take the largest value in each bin of each RoI, see :class:`RoIPool`; returns (K, C, height, width)."""
    height, width = _pair(output_size)
    # mmcv does not round the RoI as torchvision's roi_pool does: each bin reaches from the floor of its start to the
    # ceiling of its end, and the last pixel of a RoI belongs to it.
    low = rois[:, 1:3].detach() * spatial_scale
    extent = (rois[:, 3:5].detach() + 1) * spatial_scale - low
    columns, rows = _bins(low[:, 0], extent[:, 0], width), _bins(low[:, 1], extent[:, 1], height)
    pooled = [
        _largest_in_bins(_largest_in_bins(input[image], columns[k], dim=2), rows[k], dim=1).transpose(1, 2)
        if positive
        else input.new_zeros(input.size(1), height, width)
        for k, (image, positive) in enumerate(zip(rois[:, 0].long().tolist(), (extent > 0).all(dim=1), strict=True))
    ]
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.size(1), height, width)


def _bins(low: Tensor, extent: Tensor, count: int) -> list[list[list[int]]]:
    """Return the half-open pixel range of each of ``count`` equal bins of each RoI."""
    edges = torch.arange(count + 1, device=low.device) * (extent / count)[:, None] + low[:, None]
    ranges: list[list[list[int]]] = torch.stack([edges[:, :-1].floor(), edges[:, 1:].ceil()], dim=2).long().tolist()
    return ranges


def _largest_in_bins(values: Tensor, bins: list[list[int]], dim: int) -> Tensor:
    """Replace ``dim`` of (C, H, W) by a last dimension with the maximum of each bin, 0 where it has no pixel."""
    size = values.size(dim)
    ranges = [(min(max(start, 0), size), min(max(end, 0), size)) for start, end in bins]
    return torch.stack(
        [
            values.narrow(dim, start, end - start).max(dim).values
            if start < end
            else torch.zeros_like(values.select(dim, 0))
            for start, end in ranges
        ],
        dim=2,
    )


class RoIPool(nn.Module):
    """RoI max pooling; a bin without pixels, or of a RoI without area, is zero.

    Args:
        output_size: Bins, (height, width) or one number for both.
        spatial_scale: Feature pixels per picture pixel: 1 / stride.

    Shape:
        input (N, C, H, W) and rois (K, 5) to (K, C, height, width).
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool the RoIs."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss of C independent sigmoids.

    Args:
        input: Logits, (N, C).
        target: Class of each row, (N,), int64; a class outside 0..C-1 is background.
        gamma: Exponent of the modulating factor.
        alpha: Share of the positives, 0..1.
        weight: Factor of each row by its class, (C,); background rows have 1 (mmcv reads past the end there).
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the N rows (not over N x C).

    Returns:
        The loss, (N, C) or a scalar.

    Raises:
        ValueError: For another reduction, or a target that is no vector of N int64.

    Source:
        Lin et al., Focal Loss, ICCV 2017, equation 5.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction={reduction!r}; allowed: none, mean, sum")
    if target.dtype != torch.long or target.shape != input.shape[:1]:
        raise ValueError(f"target {target.dtype} {tuple(target.shape)}; allowed: int64 ({len(input)},)")
    classes = torch.arange(input.size(1), device=input.device)
    positive = target[:, None] == classes
    loss: Tensor = tv.sigmoid_focal_loss(input, positive.to(input), alpha=alpha, gamma=gamma)
    if weight is not None:
        loss = loss * torch.where(positive.any(dim=1), weight[target.clamp(0, len(weight) - 1)], 1.0)[:, None]
    return loss if reduction == "none" else loss.sum() / (len(input) if reduction == "mean" else 1)


class SigmoidFocalLoss(nn.Module):
    """Module form of :func:`sigmoid_focal_loss`, with its arguments."""

    def __init__(self, gamma: float, alpha: float, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and classes (N,)."""
        return sigmoid_focal_loss(input, target, self.gamma, self.alpha, self.weight, self.reduction)


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
    """Convolve with samples moved by ``offset`` and scaled by ``mask`` (none: 1).

    Shape:
        input (N, C, H, W); offset (N, deform_groups * 2 * kh * kw, H', W'), (dy, dx) per tap, in pixels; mask
        (N, deform_groups * kh * kw, H', W'); weight (out, C / groups, kh, kw).

    Raises:
        ValueError: If offset or weight do not fit ``deform_groups`` or ``groups``.
    """
    taps = weight.size(2) * weight.size(3)
    if offset.size(1) != 2 * deform_groups * taps or input.size(1) != groups * weight.size(1):
        raise ValueError(
            f"offset has {offset.size(1)} channels, weight {weight.size(1)} input channels; allowed with {taps} taps, "
            f"deform_groups={deform_groups}, groups={groups}: {2 * deform_groups * taps}, {input.size(1) / groups:g}"
        )
    output: Tensor = tv.deform_conv2d(input, offset, weight, bias, _pair(stride), _pair(padding), _pair(dilation), mask)
    return output


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
    """:func:`modulated_deform_conv2d` without mask and bias; ``bias`` must be False, ``im2col_step`` has no effect."""
    if bias:
        raise ValueError("deform_conv2d bias=True; allowed: False")
    return modulated_deform_conv2d(input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups)


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
        """Return a convolution that predicts zeros until it is trained: the layer starts as a plain convolution."""
        channels = channels_per_tap * self.deform_groups * math.prod(self.kernel_size)
        conv = nn.Conv2d(self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv


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


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False, **kwargs: Any) -> Tensor:
    """Sample features at points given as shares of the picture.

    Args:
        input: Features (N, C, H, W).
        points: (x, y) in 0..1, (N, P, 2) or (N, height, width, 2).
        align_corners: Whether 0 and 1 are the centres of the outer pixels instead of their outer edges.
        **kwargs: Further arguments of torch's grid_sample.

    Returns:
        (N, C, P) or (N, C, height, width).
    """
    grid = points[:, :, None] if points.dim() == 3 else points
    sampled = F.grid_sample(input, 2 * grid - 1, align_corners=align_corners, **kwargs)
    return sampled[..., 0] if points.dim() == 3 else sampled


def rel_roi_point_to_rel_img_point(
    rois: Tensor, rel_roi_points: Tensor, img: tuple[int, int] | Tensor, spatial_scale: float = 1.0
) -> Tensor:
    """Turn points given as shares of their RoI into shares of the picture.

    Args:
        rois: (N, 4), or (N, 5) with the image index first.
        rel_roi_points: (x, y) in 0..1, (N, P, 2).
        img: (height, width) of the features in pixels, or the features (N, C, H, W).
        spatial_scale: Feature pixels per picture pixel: 1 / stride.

    Returns:
        (N, P, 2).
    """
    height, width = img.shape[2:] if isinstance(img, Tensor) else img
    low, high = rois[:, None, -4:-2], rois[:, None, -2:]
    return (low + rel_roi_points * (high - low)) * spatial_scale / low.new_tensor([width, height])


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
