"""A Pareto front out of one supernet: for every cost the architecture of the least loss that is found."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.budget_settings import BudgetKey, BudgetSettings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.cost.pareto import pareto_front
from hitdet_nni.cost.random_draws import draw_within
from hitdet_nni.engine import distributed
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.cost_term import BudgetedCost, CostTerm
from hitdet_nni.nas.operator_samples import Losses, Sampled
from hitdet_nni.nas.sampled_decode import ROUND, AdditiveModel, Evaluated, search_samples
from hitdet_nni.runs.front import FILLED

logger = logging.getLogger(__name__)

LIMITS = 16
"""Costs between the least and the largest at which architectures are looked for, in equal ratios."""

OF_EACH = 2
"""Architectures tried with the least losses in each interval of costs that are compared at the end."""

OF_FILLING = 4
"""Of so many random ones that fill a budget the one with the least loss is compared at the end."""


@dataclass(frozen=True)
class Finalist:
    """An architecture that is compared with the others at the end.

    Attributes:
        sample: Its operators: one for every searched layer, those with a single candidate included.
        origin: As :class:`hitdet_nni.runs.front.FrontRow` has it.
        loss: Its loss on images that had no part in the choice among samples.
        cost: Its cost in the unit of the front.
    """

    sample: Mapping[str, str]
    origin: str
    loss: float
    cost: float


class FrontSearch:
    """Looks for the architectures of a supernet that no other one beats in loss and cost.

    Architectures are tried as :func:`~hitdet_nni.nas.sampled_decode.search_samples` does, the budgets being
    :data:`LIMITS` costs in equal ratios. Then finalists are compared on other images than those that samples were
    chosen by, because the least of many losses is partly luck: what the search has found, what the architecture
    parameters decide within each limit, what the model takes for the best there, and the best that were tried in each
    interval of costs. The parameters have been trained on all of these images, which favours them a little.

    Of the costs below a budget those of the least loss leave much of it unused: a supernet teaches small operators
    faster. So random architectures that fill a budget are among them, of which trainings choose (docs/results.md).

    Args:
        model: Costs of all layers.
        space: Sub search space of each component.
        key: The unit of the front.
        candidates: Names of the candidates of the layers that have several, by label.
        budgets: Costs at which an architecture is wanted besides.

    Attributes:
        ends: Least and largest cost of an architecture.

    Raises:
        InputError: If a budget is below what any architecture costs.

    Source:
        An addition.
    """

    def __init__(
        self,
        model: CostModel,
        space: Mapping[Component, Sequence[str]],
        key: BudgetKey,
        candidates: Mapping[str, Sequence[str]],
        budgets: Sequence[float] = (),
    ) -> None:
        self.key = key
        self.candidates = candidates
        self.costs = CostTable(model, space, key)
        self.budgets = tuple(budgets)
        scale = self.costs.unit.scale
        least, most = self.ends = (self.costs.least / scale, self.costs.largest / scale)
        # The least possible cost is kept by one architecture alone, whatever its loss.
        ratio = (most / least) ** (1 / LIMITS)
        self.limits = tuple(sorted({*(least * ratio**step for step in range(1, LIMITS)), most, *self.budgets}))
        terms = {limit: BudgetedCost(self._budget(model, space, limit), 0.0, 1.0) for limit in self.limits}
        for limit in self.budgets:
            terms[limit].budget.check_reachable("--budget", by_option=True)
        self.terms: Mapping[float, CostTerm] = terms

    def _budget(self, model: CostModel, space: Mapping[Component, Sequence[str]], limit: float) -> Budget:
        table = (
            {"table": model.latency.source, "other_machine": True} if self.key == "latency_ms" and model.latency else {}
        )
        return Budget(model, space, BudgetSettings(**{self.key: limit}, **table))

    def cost(self, sample: Sampled) -> float:
        """Return the cost of an architecture in the front's unit; layers with a single candidate may be left out."""
        return self.costs.of(sample) / self.costs.unit.scale

    def explore(self, losses: Losses, count: int, seed: int) -> list[Evaluated]:
        """Try architectures of all costs.

        Args:
            losses: Gives the losses of architectures.
            count: How many, at most.
            seed: Decides all draws.
        """
        return search_samples(losses, self.candidates, list(self.terms.values()), count, seed)

    def fill(self, losses: Losses, count: int, seed: int) -> list[Evaluated]:
        """Try random architectures that cost at most a tenth less than each budget; return the best quarter of each.

        Near the least and the largest cost there are few or none.

        Args:
            losses: Gives the losses of architectures.
            count: How many different ones at most, in nearly equal parts for the budgets.
            seed: Decides all draws.
        """
        best: list[Evaluated] = []
        budgets = dict.fromkeys(self.budgets)
        before: set[tuple[str, ...]] = set()
        for place, budget in enumerate(budgets):
            share = count // len(budgets) + (place < count % len(budgets))
            most = budget * self.costs.unit.scale
            found = draw_within(self.costs, FILLED * most, most, seed=seed, exclude=before)
            drawn = list(itertools.islice(found, share))
            before |= {tuple(one.values()) for one in drawn}
            samples = [{label: one[label] for label in self.candidates} for one in drawn]
            if len(samples) < share:
                logger.info("%d of %d random architectures that fill %g were found", len(samples), share, budget)
            tried = map(Evaluated, samples, losses(samples))
            best += sorted(tried, key=lambda one: one.loss)[: math.ceil(len(samples) / OF_FILLING)]
        return best

    def nominate(
        self,
        tried: Sequence[Evaluated],
        searched: Sampled,
        decided: Sequence[Sampled],
        filling: Sequence[Evaluated] = (),
    ) -> dict[tuple[str, ...], str]:
        """Return the finalists by their operators, in the candidates' order, with their origins.

        Args:
            tried: What was tried.
            searched: What the search has found.
            decided: What the architecture parameters decide within several costs.
            filling: Random ones that fill the budgets.
        """
        found = {self._key(searched): "search"}
        for sample in decided:
            found.setdefault(self._key(sample), "parameters")
        model = AdditiveModel([one.sample for one in tried], [one.loss for one in tried], self.candidates)
        for term in self.terms.values():
            found.setdefault(self._key(term.decode_losses(model.effects(), self.candidates)), "model")
        below = 0.0
        for limit in self.limits:
            of_interval = [one for one in tried if below < self.cost(one.sample) <= limit]
            for one in sorted(of_interval, key=lambda one: one.loss)[:OF_EACH]:
                found.setdefault(self._key(one.sample), "sample")
            below = limit
        for one in filling:
            found.setdefault(self._key(one.sample), "random")
        return found

    def compare(self, finalists: Mapping[tuple[str, ...], str], losses: Losses, fixed: Sampled) -> list[Finalist]:
        """Compare finalists on other images.

        Args:
            finalists: As :meth:`nominate` gives them.
            losses: Gives losses on images that no sample was chosen by.
            fixed: The operators of layers with a single candidate.

        Returns:
            The finalists by ascending cost, of equal ones by ascending loss.
        """
        samples = [dict(zip(self.candidates, key, strict=True)) for key in finalists]
        found = [
            Finalist({**fixed, **sample}, origin, loss, self.cost(sample))
            for sample, origin, loss in zip(samples, finalists.values(), losses(samples), strict=True)
        ]
        return sorted(found, key=lambda one: (one.cost, one.loss))

    def _key(self, sample: Sampled) -> tuple[str, ...]:
        return tuple(sample[label] for label in self.candidates)


def on_front(finalists: Sequence[Finalist]) -> list[bool]:
    """Return for each finalist whether no other one beats it."""
    places = set(pareto_front([(one.cost, -one.loss) for one in finalists]))
    return [place in places for place in range(len(finalists))]


def best_within(finalists: Sequence[Finalist], limit: float) -> Finalist | None:
    """Return the finalist of the least loss within a cost, ``None`` where there is none."""
    return min((one for one in finalists if one.cost <= limit), key=lambda one: one.loss, default=None)


def known(
    losses: Losses,
    get: Callable[[Sampled], float | None],
    keep: Callable[[Sequence[Sampled], Sequence[float]], None],
) -> Losses:
    """Return losses of which those that are known are not computed again.

    Args:
        losses: Computes losses.
        get: Returns the loss of an architecture that is known.
        keep: Keeps losses that were computed, some at a time.
    """

    def complete(samples: Sequence[Sampled]) -> list[float]:
        new = [sample for sample in samples if get(sample) is None]
        together = ROUND * distributed.world_size()
        for start in range(0, len(new), together):
            some = new[start : start + together]
            keep(some, losses(some))
        return [loss for sample in samples if (loss := get(sample)) is not None]

    return complete
