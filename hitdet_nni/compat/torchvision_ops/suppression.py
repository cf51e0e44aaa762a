"""Suppression of overlapping boxes, (x1, y1, x2, y2) in pixels or rotated: NMS, soft-NMS, and NMS per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchvision.ops as tv
from mmengine.utils import deprecated_api_warning
from torch import Tensor

from hitdet_nni.compat.torchvision_ops.overlaps import box_iou_rotated

Array = Any
"""A torch.Tensor or a numpy.ndarray; the result is of the kind of the first argument."""


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
    shifted, lowered = shifted.cpu(), all_scores.detach().cpu().clone()  # a GPU would be waited for at every box
    remaining = torch.arange(len(lowered))
    kept: list[Tensor] = []
    while len(remaining):
        best = remaining[lowered[remaining].argmax()]
        kept.append(best)
        remaining = remaining[remaining != best]
        # The IoU of two boxes without area is 0 / 0: they do not overlap.
        iou = tv.box_iou(shifted[best, None], shifted[remaining])[0].nan_to_num(0.0)
        lowered[remaining] *= decays[method](iou)
        remaining = remaining[lowered[remaining] >= min_score]
    keep = (torch.stack(kept) if kept else remaining).to(all_boxes.device)
    return _like(boxes, torch.cat([all_boxes[keep], lowered.to(all_scores.device)[keep, None]], dim=1), keep)


def nms_rotated(
    dets: Tensor, scores: Tensor, iou_threshold: float, labels: Tensor | None = None, clockwise: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Keep the best box of each group of rotated boxes that overlap.

    Args:
        dets: (N, 5): centre x and y, width, height in pixels, angle in radians.
        scores: (N,).
        iou_threshold: A box goes when its IoU with a better, kept one is larger.
        labels: (N,), the class of each box: those of different classes do not suppress each other. None: one class.
        clockwise: Whether a positive angle turns the x axis (to the right) towards the y axis (down).

    Returns:
        Boxes with their score (n, 6), best first, and their indices (n,) in the input; of no boxes, as in mmcv, these
        (0, 5) and None.

    Raises:
        ValueError: For other shapes.
    """
    if not len(dets):
        return dets, None
    if dets.dim() != 2 or dets.size(1) != 5 or len(scores) != len(dets):
        raise ValueError(f"dets {tuple(dets.shape)} and scores {tuple(scores.shape)}; allowed: (N, 5) and (N,)")
    boxes = dets.detach()
    remaining = scores.detach().argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(remaining):
        best, remaining = remaining[:1], remaining[1:]
        kept.append(best)
        suppressed = box_iou_rotated(boxes[best], boxes[remaining], clockwise=clockwise)[0] > iou_threshold
        if labels is not None:
            suppressed &= labels[remaining] == labels[best]
        remaining = remaining[~suppressed]
    keep = torch.cat(kept)
    return torch.cat([dets[keep], scores[keep, None]], dim=1), keep


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Mapping[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Suppress overlapping boxes of the same class.

    Args:
        boxes: (N, 4), in pixels; of ``"nms_rotated"`` (N, 5).
        scores: (N,).
        idxs: (N,), the class or group of each box, from 0.
        nms_cfg: None only sorts by score. Otherwise ``type`` (``"nms"``, ``"soft_nms"``, ``"nms_rotated"`` or a
            function), that function's arguments, ``class_agnostic``, and ``split_thr``: from this many boxes (10000)
            the groups are suppressed one after another and ``max_num`` bounds their union.
        class_agnostic: Ignore ``idxs``. As in mmcv, it has no effect from ``split_thr`` boxes on.

    Returns:
        Boxes with their score (n, 5 or 6), best first, and their indices (n,) in the input.

    Raises:
        ValueError: For another ``type``.
    """
    if nms_cfg is None:
        ordered, order = scores.sort(descending=True)
        return torch.cat([boxes[order], ordered[:, None]], dim=1), order
    options = dict(nms_cfg)
    class_agnostic = options.pop("class_agnostic", class_agnostic)
    split_thr = options.pop("split_thr", 10000)
    method = options.pop("type", "nms")
    named = {"nms": nms, "nms_rotated": nms_rotated, "soft_nms": soft_nms}
    if not callable(method) and method not in named:
        raise ValueError(f"nms type {method!r}; allowed: {', '.join(named)} (a compiled mmcv provides others)")
    suppress = method if callable(method) else named[method]
    if not len(boxes):
        return boxes.new_zeros(0, boxes.size(-1) + 1), idxs.new_zeros(0, dtype=torch.long)
    moved = boxes if class_agnostic else _moved_apart(boxes, idxs)
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


def _moved_apart(boxes: Tensor, idxs: Tensor) -> Tensor:
    """Move the classes apart by more than the largest coordinate, so that boxes of two classes cannot overlap."""
    if boxes.size(-1) == 4:
        return boxes + (idxs.to(boxes) * (boxes.max() + 1))[:, None]
    reach = boxes[:, :2].max() + boxes[:, 2:4].max()
    return torch.cat([boxes[:, :2] + (idxs.to(boxes) * (reach + 1))[:, None], boxes[:, 2:]], dim=1)


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
