"""The cost term of the architecture loss (Eq. 6): a fixed weight, or a weight that adapts to a budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.nas.budget import Budget, BudgetMultiplier
from hitdet_nni.nas.decode import decode


class CostTerm(ABC):
    """What a search does about the cost of the detector: in its loss, and when it decides the operators.

    A kind of cost of your own needs :attr:`weight` and :meth:`loss`. Probabilities are those of all candidates of each
    layer by its label, shape ``[N]``.
    """

    @property
    @abstractmethod
    def weight(self) -> float:
        """The weight of the expected cost now, per unit of it; at 0 the loss is not computed."""

    @abstractmethod
    def loss(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return what the architecture loss adds: a scalar of the probabilities' type."""

    def check(self, candidates: Mapping[str, Sequence[Any]]) -> None:  # noqa: B027  (some are of any space)
        """Refuse a space that the cost is not of; called before the first step. Nothing by default.

        Args:
            candidates: All options of each choice that is searched, by label, in the order of the probabilities.
        """

    def step(self, probabilities: Mapping[str, Tensor]) -> None:  # noqa: B027  (most weights rest)
        """Adapt the weight; called once an architecture step, before :meth:`loss`. Nothing by default."""

    def decode(
        self, log_probabilities: Mapping[str, Mapping[str, float]], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        """Return the architecture that is found; :func:`hitdet_nni.nas.decode.decode` without a budget by default.

        Args:
            log_probabilities: Log-probability of each active candidate, by label.
            candidates: Names of all candidates of each layer to decide, by label.
        """
        return decode(log_probabilities, candidates)

    def price(self, sample: Mapping[str, str], candidates: Mapping[str, Sequence[str]]) -> float:
        """Return what the cost of an architecture adds to its loss: by default what :meth:`loss` gives it.

        Args:
            sample: One operator for every layer.
            candidates: Names of all candidates of each layer, by label, in the order of the probabilities.
        """
        return float(self.loss({label: _one_hot(names, sample[label]) for label, names in candidates.items()}))

    def decode_losses(
        self, losses: Mapping[str, Mapping[str, float]], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        """Return the architecture with the least loss, what its cost adds included.

        Args:
            losses: What each operator adds to the loss, by label.
            candidates: Names of all candidates of each layer to decide, by label.
        """
        prices = self._prices(candidates)
        rows = {
            label: {name: -loss - prices[label][name] for name, loss in row.items()} for label, row in losses.items()
        }
        return decode(rows, candidates)

    def _prices(self, candidates: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        """Return what each operator adds to :meth:`loss`: exact where that is linear in the probabilities, as Eq. 7."""
        uniform = [torch.full((len(names),), 1 / len(names), dtype=torch.float64) for names in candidates.values()]
        with torch.enable_grad():
            rows = [row.requires_grad_() for row in uniform]
            loss = self.loss(dict(zip(candidates, rows, strict=True)))
        if not loss.requires_grad:
            return {label: dict.fromkeys(names, 0.0) for label, names in candidates.items()}
        gradients = torch.autograd.grad(loss, rows, allow_unused=True)
        return {
            label: dict.fromkeys(names, 0.0) if gradient is None else dict(zip(names, gradient.tolist(), strict=True))
            for (label, names), gradient in zip(candidates.items(), gradients, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, as plain values. Nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:  # noqa: B027  (most have no state)
        """Restore what :meth:`state_dict` returned."""


class NoCost(CostTerm):
    """A search that the cost does not concern."""

    @property
    def weight(self) -> float:
        """Zero."""
        return 0.0

    def loss(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return a scalar zero."""
        return torch.zeros(())


NO_COST = NoCost()
"""The default of a search; it has no state of its own."""


class WeightedCost(CostTerm):
    """``lambda * C``: the expected cost with a fixed weight; the operators are decided without regard to it.

    Args:
        costs: Costs of the space.
        weight: lambda per unit of ``costs`` (per GFLOP by default; 0.01 in the paper's search).

    Raises:
        ValueError: If the weight is negative.

    Source:
        Eq. 6.
    """

    def __init__(self, costs: CostTable, weight: float) -> None:
        if weight < 0:
            raise ValueError(f"the weight of the cost must not be negative, got {weight}")
        self.costs = costs
        self._weight = weight

    def check(self, candidates: Mapping[str, Sequence[Any]]) -> None:
        """Refuse candidates that the costs are not of."""
        self.costs.check(candidates)

    @property
    def weight(self) -> float:
        """Lambda."""
        return self._weight

    def loss(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted expected cost, a scalar."""
        return _weighted(self._weight, self.costs, probabilities)


class BudgetedCost(CostTerm):
    """The expected cost with the weight that leads it to a budget; the operators are decided within the budget.

    Args:
        budget: What the detector may cost.
        start: Weight to start from, per unit of the budget.
        alpha_lr: Learning rate of the architecture parameters.
    """

    def __init__(self, budget: Budget, start: float, alpha_lr: float) -> None:
        self.budget = budget
        self.multiplier = BudgetMultiplier(budget.limit, start, alpha_lr)

    def check(self, candidates: Mapping[str, Sequence[Any]]) -> None:
        """Refuse candidates that the budget's costs are not of."""
        self.budget.costs.check(candidates)

    @property
    def weight(self) -> float:
        """The multiplier's weight."""
        return self.multiplier.weight

    def loss(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted expected cost in the budget's unit, a scalar."""
        return _weighted(self.weight, self.budget.costs, probabilities)

    def step(self, probabilities: Mapping[str, Tensor]) -> None:
        """Adapt the weight to the expected cost under probabilities of shape ``[N]``."""
        self.multiplier.update(float(self.budget.costs.expected(probabilities).detach()))

    def decode(
        self, log_probabilities: Mapping[str, Mapping[str, float]], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        """Return the most probable architecture within the budget."""
        return decode(log_probabilities, candidates, self.budget)

    def price(self, sample: Mapping[str, str], candidates: Mapping[str, Sequence[str]]) -> float:
        """Return 0 within the budget and infinity beyond it."""
        return 0.0 if self.budget.keeps(sample) else math.inf

    def decode_losses(
        self, losses: Mapping[str, Mapping[str, float]], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        """Return the architecture with the least loss within the budget."""
        rows = {label: {name: -loss for name, loss in row.items()} for label, row in losses.items()}
        return decode(rows, candidates, self.budget)

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier's state."""
        return self.multiplier.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the multiplier's state."""
        self.multiplier.load_state_dict(state)


def make_cost_term(
    model: CostModel,
    space: Mapping[Component, Sequence[str]],
    weight: float,
    budget: BudgetSettings | None,
    alpha_lr: float,
) -> CostTerm:
    """Build the cost term that settings ask for.

    Args:
        model: Costs of all layers.
        space: Candidate names of each component.
        weight: lambda per GFLOP; with a budget the weight that its multiplier starts from.
        budget: What the detector may cost, or ``None``.
        alpha_lr: Learning rate of the architecture parameters.
    """
    if budget is None:
        return WeightedCost(CostTable(model, space), weight)
    return BudgetedCost(Budget(model, space, budget), weight, alpha_lr)


def _one_hot(names: Sequence[str], chosen: str) -> Tensor:
    return torch.tensor([float(name == chosen) for name in names], dtype=torch.float64)


def _weighted(weight: float, costs: CostTable, probabilities: Mapping[str, Tensor]) -> Tensor:
    """Return the expected cost in the probabilities' type, times the weight."""
    dtype = next(iter(probabilities.values())).dtype
    return weight * costs.expected(probabilities).to(dtype)
