"""Which architecture a supernet has: the best of those that are tried in it, chosen by what has been seen of others."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import component_of
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.nas.cost_term import CostTerm
from hitdet_nni.nas.operator_samples import RIDGE, Losses, Sampled, draw_architectures
from hitdet_nni.nas.sample_evaluation import evaluation
from hitdet_nni.nas.supernet import TrainedSupernet
from hitdet_nni.runs.samples import TriedArchitecture

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
        y -= y.mean()
        x -= x.mean(axis=0)
        precision = x.T @ x + ridge * np.eye(len(keys))
        self._mean = np.asarray(np.linalg.solve(precision, x.T @ y), dtype=np.float64)
        # The most likely one: y^T C^-1 y / (n - 1), with C = x x^T / ridge + I the covariance of y in units of it.
        noise = max(0.0, float(y @ (y - x @ self._mean))) / max(1, len(y) - 1)
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


class Evaluated(NamedTuple):
    """An architecture that was looked at.

    Attributes:
        sample: Its operators, by layer.
        loss: Its loss by the supernet's weights.
    """

    sample: Sampled
    loss: float


def search_samples(
    losses: Losses, candidates: Mapping[str, Sequence[str]], costs: Sequence[CostTerm], count: int, seed: int
) -> list[Evaluated]:
    """Try architectures, half of them drawn by a plan and the others where the best are to be expected.

    The first half is drawn as :func:`~hitdet_nni.nas.operator_samples.draw_architectures` does. Then, again and
    again, the model is fitted to all that were tried, and :data:`ROUND` more are proposed: the one that it takes for
    the best, and those that are best by effects drawn from its posterior (Thompson sampling). What the cost term adds
    is known exactly and part of what is the best; a proposal is within the budget where there is one. Of several cost
    terms each proposal takes the next.

    Args:
        losses: Gives the losses of some architectures; the same for the same ones.
        candidates: Names of the candidates of each layer, by label.
        costs: What is done about the cost: one way, or several that are to have their best.
        count: Architectures, 4 or more; fewer are tried where the model comes back to those that it knows.
        seed: Decides all draws.

    Returns:
        The architectures in the order in which they were tried, none twice; at least one is within a budget.

    Source:
        An addition. Thompson sampling of linear models: Agrawal and Goyal, ICML 2013.
    """
    generator = np.random.default_rng(seed)
    tried: dict[tuple[str, ...], Evaluated] = {}
    terms = itertools.cycle(costs)

    def key(sample: Sampled) -> tuple[str, ...]:
        return tuple(sample[label] for label in candidates)

    def try_all(keys: Iterable[tuple[str, ...]]) -> None:
        new = [each for each in dict.fromkeys(keys) if each not in tried]
        samples = [dict(zip(candidates, names, strict=True)) for names in new]
        for names, sample, loss in zip(new, samples, losses(samples), strict=True):
            tried[names] = Evaluated(sample, loss)

    try_all(key(sample) for sample in draw_architectures(candidates, count // 2, seed))
    while len(tried) < count:
        model = AdditiveModel([one.sample for one in tried.values()], [one.loss for one in tried.values()], candidates)
        proposed = [key(next(terms).decode_losses(model.effects(), candidates))]
        wanted = min(ROUND, count - len(tried))
        for _ in range(MOST_DRAWS * wanted):
            if len(set(proposed) - tried.keys()) == wanted:
                break
            proposed.append(key(next(terms).decode_losses(model.effects(generator), candidates)))
        proposed = distributed.broadcast_object(proposed)  # of several processes the main one proposes
        if not set(proposed) - tried.keys():
            break
        try_all(proposed)
    return list(tried.values())


def totals(tried: Sequence[Evaluated], cost: CostTerm, candidates: Mapping[str, Sequence[str]]) -> list[float]:
    """Return the loss of each architecture with what its cost adds: infinity beyond a budget."""
    return [one.loss + cost.price(one.sample, candidates) for one in tried]


def decode_by_samples(
    trained: TrainedSupernet, settings: Settings, data: DetectionData, seed: int, stage: str
) -> DecodedSamples:
    """Try architectures of a trained supernet on the half for architecture parameters.

    Args:
        trained: The supernet of a search.
        settings: Say how many architectures and images.
        data: The images, with the halves that the supernet was trained on.
        seed: The seed of the supernet's training.
        stage: What it was trained for, for messages.

    Raises:
        StoppedError: If a loss is NaN or infinite.
    """
    count, images = settings.search.samples, settings.search.sample_images
    supernet, cost = trained.sampled, trained.module.cost
    with evaluation(supernet, stage, settings, data, seed, images, count) as losses:
        tried = search_samples(losses, supernet.candidates, [cost], count, seed)
    found = DecodedSamples(tuple(tried), tuple(totals(tried, cost, supernet.candidates)))
    place = found.place
    logger.info(
        "%s: number %d of %d is the best, loss %.3f, with cost %.3f",
        stage,
        place + 1,
        len(tried),
        tried[place].loss,
        found.totals[place],
    )
    return found


@dataclass(frozen=True)
class DecodedSamples:
    """The architectures that a search has tried, and the one that it takes.

    Attributes:
        tried: The architectures in order.
        totals: The loss of each with what its cost adds.
    """

    tried: tuple[Evaluated, ...]
    totals: tuple[float, ...]

    @property
    def place(self) -> int:
        """The place of the architecture with the least total, of equals the first."""
        return self.totals.index(min(self.totals))

    @property
    def best(self) -> Sampled:
        """That architecture."""
        return self.tried[self.place].sample

    def rows(self, found: Mapping[str, str], model: CostModel) -> list[TriedArchitecture]:
        """Return the architectures with their costs, as a run keeps them.

        Args:
            found: The one that is found: an operator for every layer, those that have a single candidate included.
            model: Costs of all layers.
        """
        whole = [{**found, **one.sample} for one in self.tried]
        costs = [model.architecture(sample)["total"] for sample in whole]
        return [
            TriedArchitecture(one.loss, total, cost.gflops, cost.params_m, sample == found, sample)
            for one, total, sample, cost in zip(self.tried, self.totals, whole, costs, strict=True)
        ]
