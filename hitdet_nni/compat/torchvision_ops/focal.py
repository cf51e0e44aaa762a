"""The focal loss of independent sigmoids."""

from __future__ import annotations

import torch
import torchvision.ops as tv
from torch import Tensor, nn


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
