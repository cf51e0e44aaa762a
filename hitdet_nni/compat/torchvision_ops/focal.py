"""Focal losses: of independent sigmoids, and of a softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision.ops as tv
from torch import Tensor, nn


def _check(input: Tensor, target: Tensor, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction={reduction!r}; allowed: none, mean, sum")
    if target.dtype != torch.long or target.shape != input.shape[:1]:
        raise ValueError(f"target {target.dtype} {tuple(target.shape)}; allowed: int64 ({len(input)},)")


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else loss.sum() / (len(loss) if reduction == "mean" else 1)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the focal loss of C independent sigmoids.

    Args:
        input: Logits, (N, C).
        target: Class of each row, (N,), int64; a class outside 0..C-1 is background.
        gamma: Exponent of the modulating factor.
        alpha: Share of the positives, 0..1.
        weight: Factor of each row by its class, (C,); background rows have 1 (mmcv reads past the end there).
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the N rows (not over N x C).

    Returns:
        The loss, (N, C) or a scalar, in float32 or wider.

    Raises:
        ValueError: For another reduction, or a target that is no vector of N int64.

    Source:
        Lin et al., Focal Loss, ICCV 2017, equation 5.
    """
    _check(input, target, reduction)
    classes = torch.arange(input.size(1), device=input.device)
    positive = target[:, None] == classes
    kind = torch.promote_types(input.dtype, torch.float32)  # 1 - (1 - p) is nothing of p in 16 bits
    with torch.autocast(input.device.type, enabled=False):
        loss: Tensor = tv.sigmoid_focal_loss(input.to(kind), positive.to(kind), alpha=alpha, gamma=gamma)
    if weight is not None:
        loss = loss * torch.where(positive.any(dim=1), weight[target.clamp(0, len(weight) - 1)], 1.0)[:, None]
    return _reduced(loss, reduction)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the focal loss of a softmax over C classes.

    Args:
        input: Logits, (N, C).
        target: Class of each row, (N,), int64; a row with a negative class costs nothing.
        gamma: Exponent of the modulating factor.
        alpha: Factor of all rows.
        weight: Factor of each row by its class, (C,).
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the N rows.

    Returns:
        The loss, (N,) or a scalar.

    Raises:
        ValueError: For another reduction, or a target that is no vector of N int64.

    Source:
        Lin et al., Focal Loss, ICCV 2017, equation 5.
    """
    _check(input, target, reduction)
    classes = target.clamp(min=0)
    log_share = F.log_softmax(input, dim=1).gather(1, classes[:, None])[:, 0]
    loss = -alpha * (-log_share.expm1()) ** gamma * log_share
    if weight is not None:
        loss = loss * weight[classes]
    return _reduced(torch.where(target >= 0, loss, 0.0), reduction)


class _FocalLoss(nn.Module):
    """What both losses keep; the weight is a buffer."""

    weight: Tensor | None

    def __init__(self, gamma: float, alpha: float, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.register_buffer("weight", weight)
        self.reduction = reduction


class SigmoidFocalLoss(_FocalLoss):
    """Module form of :func:`sigmoid_focal_loss`, with its arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and classes (N,)."""
        return sigmoid_focal_loss(input, target, self.gamma, self.alpha, self.weight, self.reduction)


class SoftmaxFocalLoss(_FocalLoss):
    """Module form of :func:`softmax_focal_loss`, with its arguments."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and classes (N,)."""
        return softmax_focal_loss(input, target, self.gamma, self.alpha, self.weight, self.reduction)
