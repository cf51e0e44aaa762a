"""One sub search space for all components, or one each (Table 4)."""

from __future__ import annotations

from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.errors import InputError
from hitdet_nni.nas.screening_reliability import ranked
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_scores


def common_sub_space(run: RunDirectory, keep: int) -> SearchSpace:
    """Return the ``keep`` operators whose places in the three screenings have the least sum, for every component.

    What not all components have has no part; a component that was not screened prefers none.

    Args:
        run: Run directory of the screening.
        keep: Operators that are left.

    Raises:
        InputError: If the scores are missing or damaged, or the components have fewer operators in common.

    Source:
        Table 4, "1 sub search space"; the paper does not say how it is chosen.
    """
    orders = []
    for component in COMPONENTS:
        if not run.scores(component).exists():  # kept whole, without a screening
            sub_spaces = load_search_space(run.require(run.sub_spaces, "search"))
            orders.append(dict.fromkeys(sub_spaces[component], 0))
            continue
        scores = read_scores(run.scores(component))
        order = ranked(scores, list(dict.fromkeys(score.operator for score in scores)))
        orders.append({name: place for place, name in enumerate(order)})
    common = [name for name in orders[0] if all(name in order for order in orders)]
    if len(common) < keep:
        problem = f"the components have {len(common)} operators in common"
        raise InputError(problem, source=run.screening, allowed=f"{keep}, as one of them has kept, or more")
    places = {name: sum(order[name] for order in orders) for name in common}
    best = set(sorted(common, key=places.__getitem__)[:keep])
    kept = [name for name in common if name in best]
    return {component: list(kept) for component in COMPONENTS}
