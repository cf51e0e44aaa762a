"""Which architecture a supernet has: the best of those that are tried in it, chosen by what has been seen of others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.config.skeleton import component_of
from hitdet_nni.search.cost_term import CostTerm
from hitdet_nni.search.operator_samples import RIDGE, Sampled, draw_architectures
from hitdet_nni.search.sample_evaluation import Losses

logger = logging.getLogger(__name__)

ROUND = 8
"""Architectures that are proposed before the model is fitted anew."""

MOST_DRAWS = 5
"""Draws of the model's effects for one proposal, before a round ends with fewer: all led to what is known already."""

FENCE = 1.5
"""Interquartile ranges above the upper quartile where losses are cut off: how bad a bad one is does not matter."""


class AdditiveModel:
    """A Bayesian linear model of an architecture's loss: a constant and what the operator of each layer adds to it.

    What an operator adds in a layer is the sum of two effects, one that it has in all layers of its component and one
    in this layer, both normal around zero beforehand. So a layer that few samples tell of follows its component.

    Args:
        samples: Architectures, an operator for each layer by its label.
        losses: Their losses. Those above Tukey's fence are taken to lie on it.
        candidates: Names of the candidates of each layer, by label.
        ridge: Variance of the noise over that of an effect.

    Source:
        Tukey, Exploratory Data Analysis, 1977, for the fence.
    """

    def __init__(
        self,
        samples: Sequence[Sampled],
        losses: Sequence[float],
        candidates: Mapping[str, Sequence[str]],
        ridge: float = RIDGE,
    ) -> None:
        self.candidates = candidates
        keys: dict[tuple[str, str], int] = {}
        for label, names in candidates.items():
            for name in names:
                for group in (component_of(label), label):
                    keys.setdefault((group, name), len(keys))
        self._columns = keys
        x = np.zeros((len(samples), len(keys)))
        for row, sample in zip(x, samples, strict=True):
            for label, name in sample.items():
                row[keys[component_of(label), name]] += 1
                row[keys[label, name]] += 1
        y = below_fence(losses)
        x -= x.mean(axis=0)
        precision = x.T @ x + ridge * np.eye(len(keys))
        self._mean: NDArray[np.float64] = np.linalg.solve(precision, x.T @ (y - y.mean()))
        noise = float(np.mean((y - y.mean() - x @ self._mean) ** 2))
        # A factor F with F F^T the covariance: precision = L L^T, so F = L^-T.
        self._factor: NDArray[np.float64] = np.sqrt(noise) * np.linalg.inv(np.linalg.cholesky(precision)).T

    def effects(self, generator: np.random.Generator | None = None) -> dict[str, dict[str, float]]:
        """Return what each operator adds to the loss, by label: on average, or as drawn from what is still possible.

        Args:
            generator: Draws the effects; ``None`` gives their means.
        """
        weights = self._mean
        if generator is not None:
            weights = weights + self._factor @ generator.standard_normal(len(weights))
        return {
            label: {
                name: float(weights[self._columns[component_of(label), name]] + weights[self._columns[label, name]])
                for name in names
            }
            for label, names in self.candidates.items()
        }


def below_fence(losses: Sequence[float]) -> NDArray[np.float64]:
    """Return losses of which none is above Tukey's upper fence, shape ``[S]``."""
    values = np.asarray(losses, dtype=np.float64)
    lower, upper = np.quantile(values, [0.25, 0.75])
    fenced: NDArray[np.float64] = np.minimum(values, upper + FENCE * (upper - lower))
    return fenced


def search_samples(
    losses: Losses,
    candidates: Mapping[str, Sequence[str]],
    cost: CostTerm,
    count: int,
    seed: int,
) -> tuple[list[dict[str, str]], list[float]]:
    """Try architectures, half of them drawn by a plan and the others where the best are to be expected.

    The first half is drawn as :func:`~hitdet_nni.search.operator_samples.draw_architectures` does. Then, again and
    again, the model is fitted to all that were tried, and :data:`ROUND` more are proposed: the one that it takes for
    the best, and those that are best by effects drawn from its posterior (Thompson sampling). What the cost term adds
    is known exactly and part of what is the best; a proposal is within the budget where there is one.

    Args:
        losses: Gives the losses of some architectures; the same for the same ones.
        candidates: Names of the candidates of each layer, by label.
        cost: What the search does about the cost.
        count: Architectures, at most; fewer where the space has no more that are worth it.
        seed: Decides all draws.

    Returns:
        The architectures in the order in which they were tried, none twice, and their losses, without cost.

    Source:
        An addition. Thompson sampling of linear models: Agrawal and Goyal, ICML 2013.
    """
    generator = np.random.default_rng(seed)
    tried: dict[tuple[str, ...], float] = {}

    def key(sample: Sampled) -> tuple[str, ...]:
        return tuple(sample[label] for label in candidates)

    def sample_of(names: Sequence[str]) -> dict[str, str]:
        return dict(zip(candidates, names, strict=True))

    def try_all(names: Sequence[tuple[str, ...]]) -> None:
        new = [each for each in dict.fromkeys(names) if each not in tried]
        tried.update(zip(new, losses([sample_of(each) for each in new]), strict=True))

    try_all([key(sample) for sample in draw_architectures(candidates, max(1, count // 2), seed)])
    while len(tried) < count:
        model = AdditiveModel([sample_of(each) for each in tried], list(tried.values()), candidates)
        wanted = min(ROUND, count - len(tried))
        proposed = {key(cost.best(model.effects(), candidates))} - tried.keys()
        for _ in range(MOST_DRAWS * wanted):
            if len(proposed) == wanted:
                break
            proposed |= {key(cost.best(model.effects(generator), candidates))} - tried.keys()
        if not proposed:
            break
        try_all(sorted(proposed))
    return [sample_of(each) for each in tried], list(tried.values())


def best_sample(
    samples: Sequence[Sampled], losses: Sequence[float], candidates: Mapping[str, Sequence[str]], cost: CostTerm
) -> dict[str, str] | None:
    """Return the architecture with the least loss, what its cost adds included; ``None`` if none keeps the budget."""
    totals = [loss + cost.price(sample, candidates) for sample, loss in zip(samples, losses, strict=True)]
    best = int(np.argmin(totals))
    return dict(samples[best]) if np.isfinite(totals[best]) else None
