"""The terms that the architecture loss adds to the validation loss, and the entropy that is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hitdet_nni.config.skeleton import component_of


def column_sparsity(alphas: Sequence[Tensor]) -> Tensor:
    """Return the column-sparse term of one component, ``sum_i sqrt(sum_l alpha_{l,i}^2)``.

    Args:
        alphas: One vector of architecture parameters a layer, all of shape ``[N]``: the rows of alpha.

    Returns:
        A scalar. Where a whole column is zero, its gradient is zero (a subgradient of the norm).

    Source:
        Eq. 4, without mu.
    """
    columns: Tensor = torch.linalg.vector_norm(torch.stack(tuple(alphas)), dim=0)
    return columns.sum()


def group_by_component(values: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Group per-layer values, of any shapes, by component, in label order."""
    groups: dict[str, list[Tensor]] = {}
    for label in sorted(values):
        groups.setdefault(component_of(label), []).append(values[label])
    return groups


def mean_entropy(probabilities: Sequence[Tensor]) -> float:
    """Return the mean entropy of several distributions, each divided by the logarithm of its length.

    Args:
        probabilities: One distribution a layer, ``[N]`` of N candidates.

    Returns:
        1 where all are uniform, 0 where each has decided; 0 for a layer with one candidate.
    """
    entropies = []
    for probability in probabilities:
        count = probability.numel()
        entropy = torch.special.entr(probability.detach().double()).sum().item()
        entropies.append(entropy / torch.log(torch.tensor(float(count))).item() if count > 1 else 0.0)
    return sum(entropies) / len(entropies)
