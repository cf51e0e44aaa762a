"""One sub search space for all components, or one each (Table 4)."""

from __future__ import annotations

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_scores


def final_order(run: RunDirectory, component: Component) -> list[str]:
    """Return all operators of a component's screening, the best first: who left later, then who stood higher.

    Raises:
        InputError: If the scores are missing or damaged.
    """
    last: dict[str, tuple[int, int, int]] = {}
    for score in read_scores(run.scores(component)):
        last[score.operator] = (-score.epoch, int(score.removed), score.rank)
    return sorted(last, key=lambda operator: last[operator])


def common_sub_space(run: RunDirectory, keep: int) -> SearchSpace:
    """Return the ``keep`` operators whose places in the three screenings have the least sum, for every component.

    Source:
        Table 4, "1 sub search space"; the paper does not say how it is chosen.
    """
    orders = [final_order(run, component) for component in COMPONENTS]
    places = {operator: sum(order.index(operator) for order in orders) for operator in orders[0]}
    best = set(sorted(places, key=lambda operator: places[operator])[:keep])
    common = [operator for operator in places if operator in best]
    return {component: list(common) for component in COMPONENTS}
