"""What is refused before anything is computed: neither torch nor a library of networks is needed to say so."""

from __future__ import annotations

from hitdet_nni.errors import InputError
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search_space import SearchSpace, load_search_space
from hitdet_nni.settings import Settings


def whole_space(settings: Settings) -> SearchSpace:
    """The search space that the settings name.

    Raises:
        InputError: If it is missing or broken, or a component has fewer operators than screening is to keep.
    """
    space = load_search_space(settings.space)
    for component, names in space.items():
        keep = getattr(settings.screening.keep, component)
        if keep > len(names):
            key = f"screening.keep.{component}"
            raise InputError(f"got {keep}", key=key, allowed=f"1 to {len(names)}, the operators of {settings.space}")
    return space


def check_budget(space: SearchSpace, settings: Settings, num_classes: int) -> None:
    """Refuse a budget that no architecture of a space keeps to, before hours are spent on it.

    Raises:
        InputError: Naming the least reachable cost.
    """
    if settings.search.budget is not None:
        from hitdet_nni.search.budget import Budget  # noqa: PLC0415  (needs torch and SciPy; most configs have none)

        Budget(CostModel(settings.skeleton, num_classes), space, settings.search.budget).check_reachable()
