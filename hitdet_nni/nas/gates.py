"""Positive gates in place of the softmax: the reading of Eq. 4 under which its term can remove an operator.

A softmax has no zero, and shrinking all its logits makes the operators alike: the term of Eq. 4 on logits takes away
what it is to bring out. As gates the architecture parameters are the weights themselves. They start at 1, and the term
is not a part of the loss but a proximal step after each step of Adam: it shortens every column by one length, so that
columns which the loss does not hold up end at zero exactly, all layers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hitdet_nni.errors import InputError
from hitdet_nni.nas.choices import ColumnGroup
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer


class PositiveGates(nn.Module):
    """Architecture parameters as weights: each over their number.

    The proximal step keeps them from being negative. It is not done here, so that a gate at zero has a gradient and can
    open again.

    Shape:
        ``[N]`` to ``[N]``: of N gates of 1 each weight is ``1 / N``, as a uniform softmax has it.
    """

    def forward(self, alpha: Tensor) -> Tensor:
        """Return the weights."""
        return alpha / alpha.numel()


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Give every mixed layer of a supernet gates in place of the softmax, all of them 1.

    Raises:
        InputError: If the model has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, ColumnSparseMixedLayer)]
    if not layers:
        problem = "the model space has no LayerChoice, and nothing else has gates"
        raise InputError(problem, source="ColumnSparseDARTS", key="gates", allowed="softmax")
    for layer in layers:
        layer.alpha.fill_(1.0)
        layer.use_weights(PositiveGates())


@torch.no_grad()
def shrink_columns(groups: Iterable[ColumnGroup], length: float) -> None:
    """Make the gates of each group's layers positive, and each column ``length`` shorter, in place.

    This is the proximal map of ``length * sum_i sqrt(sum_l alpha_{l,i}^2)`` over what is not negative: a column of
    norm ``n`` is multiplied by ``max(0, 1 - length / n)``.

    Args:
        groups: The matrices of Eq. 4; those of choices without layers are left alone.
        length: The learning rate times mu.

    Source:
        Eq. 4; Yuan and Lin, Model selection and estimation in regression with grouped variables, JRSS B 68, 2006.
    """
    for group in groups:
        if group.removable:
            _shrink([choice.alpha for choice in group.choices], [choice.options for choice in group.choices], length)


def _shrink(alphas: Sequence[Tensor], options: Sequence[Sequence[object]], length: float) -> None:
    # Layers of one group have the same operators, but each may have them in an order of its own.
    orders = [torch.tensor([own.index(option) for option in options[0]], device=alphas[0].device) for own in options]
    rows = torch.stack([alpha[order] for alpha, order in zip(alphas, orders, strict=True)]).clamp_(min=0)
    norms = torch.linalg.vector_norm(rows, dim=0)
    rows *= (1 - length / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)
    for alpha, order, row in zip(alphas, orders, rows, strict=True):
        alpha[order] = row
