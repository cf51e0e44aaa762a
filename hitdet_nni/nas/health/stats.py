"""Signs of health of a search: what was seen at the end of each epoch, and what that means in words.

A search always ends with an architecture, whether it learned anything or not. These numbers tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.config.skeleton import component_of
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.nas.health.permutation_test import Permutation, PermutationResult
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.regularizers import group_by_component, mean_entropy


class GradientNorms:
    """Mean L2 norm of the architecture parameters' gradient over the steps of an epoch, by component.

    Sums stay on the gradients' device until they are asked for.
    """

    def __init__(self) -> None:
        self._steps: dict[str, Tensor | float] = {}
        self._sums: dict[str, Tensor | float] = {}

    def add(self, gradients: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Take the gradients of one step; a component's that are not finite are left out, as fp16 leaves out the step.

        Args:
            gradients: Gradient of each layer by its label, shape ``[N]``.
            scale: What the loss was multiplied with before backward.
        """
        for component, rows in group_by_component(gradients).items():
            norm = torch.linalg.vector_norm(torch.cat([row.detach().flatten() for row in rows]).double()) / scale
            finite = norm.isfinite()
            self._steps[component] = self._steps.get(component, 0.0) + finite.double()
            self._sums[component] = self._sums.get(component, 0.0) + torch.where(finite, norm, 0.0)

    def take_means(self) -> dict[str, float]:
        """Return the means; the next epoch starts with none."""
        state = self.state_dict()
        self.load_state_dict({"steps": {}, "sums": {}})
        return {name: total / max(1.0, state["steps"][name]) for name, total in state["sums"].items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return what a checkpoint within the epoch needs, as plain numbers."""
        return {
            "steps": {name: float(value) for name, value in self._steps.items()},
            "sums": {name: float(value) for name, value in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Go back to a checkpoint."""
        self._steps, self._sums = dict(state["steps"]), dict(state["sums"])


@dataclass(frozen=True)
class SearchStats:
    """What is seen of a search at the end of an epoch, before its removals.

    Attributes:
        epoch: The epoch, from 0.
        searching: Whether the architecture parameters moved in it.
        candidates: Active operators, by component.
        decoded: The operator that decoding chooses, by layer: the argmax, or the best within a budget.
        entropy: Mean entropy of each component's probabilities, 1 for uniform, 0 for decided.
        changed: Share of each component's layers whose operator is another than an epoch before, not counting those
            that lost it by removal; 0 in the first epoch.
        gradient_norm: L2 norm of the gradient of each component's architecture parameters, mean over the epoch's steps;
            0 where none was made.
        expected_gflops: Expected cost under the architecture parameters (Eq. 7).
        cost_gap: What decoding adds to the expected cost, GFLOPs by component.
        evidence: What the detector's loss on held-out images owes to their annotations and to their categories.
    """

    epoch: int
    searching: bool
    candidates: dict[str, int]
    decoded: dict[str, str]
    entropy: dict[str, float]
    changed: dict[str, float]
    gradient_norm: dict[str, float]
    expected_gflops: float
    cost_gap: dict[str, float]
    evidence: dict[Permutation, PermutationResult]

    @property
    def decoded_gflops(self) -> float:
        """Cost of the architecture that decoding chooses."""
        return self.expected_gflops + sum(self.cost_gap.values())

    def metrics(self) -> dict[str, float]:
        """Return the numbers for a table or a plot, flat; the same keys in every epoch of a training."""
        return {
            **{f"entropy_{name}": value for name, value in self.entropy.items()},
            **{f"changed_{name}": value for name, value in self.changed.items()},
            **{f"alpha_gradient_{name}": value for name, value in self.gradient_norm.items()},
            "decoded_gflops": self.decoded_gflops,
            "decoded_to_expected": self.decoded_gflops / self.expected_gflops,
            **{f"{kind}_gain": found.gain for kind, found in self.evidence.items()},
            **{f"{kind}_p": found.p_value for kind, found in self.evidence.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return plain values that :meth:`restore` takes back."""
        return asdict(self)

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> SearchStats:
        """Restore the value that :meth:`state` wrote."""
        evidence = {kind: PermutationResult(**found) for kind, found in state["evidence"].items()}
        return cls(**{**state, "evidence": evidence})


@torch.no_grad()
def collect_stats(
    epoch: int,
    layers: Mapping[str, ColumnSparseMixedLayer],
    chosen: Mapping[str, str],
    cost: CostTable,
    gradient_norm: Mapping[str, float],
    evidence: Mapping[Permutation, PermutationResult],
    previous: SearchStats | None,
) -> SearchStats:
    """Look at a search at the end of an epoch.

    Args:
        epoch: The epoch, from 0.
        layers: The mixed layers by label.
        chosen: The operator that decoding chooses, by label.
        cost: Costs of the space, in GFLOPs.
        gradient_norm: :meth:`GradientNorms.take_means` of the epoch; empty in warm-up.
        evidence: What exchanging annotations did to the loss on held-out images.
        previous: The epoch before; ``None`` in the first.
    """
    probabilities = {label: layer.distribution() for label, layer in layers.items()}
    # NNI's labels are a subclass of str, which a checkpoint that executes nothing cannot hold.
    decoded = {str(label): str(chosen[label]) for label in layers}
    expected = float(cost.expected(probabilities))
    groups: dict[str, list[str]] = {}
    for label in decoded:
        groups.setdefault(component_of(label), []).append(label)
    gap = {}
    for component, labels in groups.items():
        decided = {label: _one_hot(layers[label], decoded[label]) for label in labels}
        gap[component] = float(cost.expected({**probabilities, **decided})) - expected

    def moved(label: str) -> bool:
        before = decoded[label] if previous is None else previous.decoded[label]
        return before in layers[label].active_names and before != decoded[label]

    return SearchStats(
        epoch=epoch,
        searching=bool(gradient_norm),
        candidates={component: len(layers[labels[0]].active_names) for component, labels in groups.items()},
        decoded=decoded,
        entropy={
            component: mean_entropy([_active(layers[label]) for label in labels])
            for component, labels in groups.items()
        },
        changed={component: sum(map(moved, labels)) / len(labels) for component, labels in groups.items()},
        gradient_norm={component: gradient_norm.get(component, 0.0) for component in groups},
        expected_gflops=expected,
        cost_gap=gap,
        evidence=dict(evidence),
    )


def _active(layer: ColumnSparseMixedLayer) -> torch.Tensor:
    """Return the shares of the candidates still active."""
    shares = layer.distribution()
    return shares[[layer.names.index(name) for name in layer.active_names]]


def _one_hot(layer: ColumnSparseMixedLayer, name: str) -> Tensor:
    weights = torch.zeros_like(layer.all_probabilities())
    weights[layer.names.index(name)] = 1
    return weights
