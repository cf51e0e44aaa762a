"""What is refused before anything is computed: neither torch nor a library of networks is needed to say so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import load_latency_table
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.machine import processor
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    from hitdet_nni.nas.budget import Budget

logger = logging.getLogger(__name__)


def whole_space(settings: Settings) -> SearchSpace:
    """Return the search space that the settings name.

    Raises:
        InputError: If it is missing or broken, or a component has fewer operators than screening is to keep, or more
            than it samples architectures.
    """
    space = load_search_space(settings.space)
    for component, names in space.items():
        keep = getattr(settings.screening.keep, component)
        if keep > len(names):
            key = f"screening.keep.{component}"
            raise InputError(f"got {keep}", key=key, allowed=f"1 to {len(names)}, the operators of {settings.space}")
        if settings.screening.rank_by == "samples" and settings.screening.samples < len(names):
            allowed = f"{len(names)} or more, the operators that {settings.space} has for the {component}"
            raise InputError(f"got {settings.screening.samples}", key="screening.samples", allowed=allowed)
    return space


def budget_cost_model(skeleton: Skeleton, num_classes: int, settings: BudgetSettings | None) -> CostModel:
    """Return the cost model of a search, with measured times where its budget is in milliseconds.

    Args:
        skeleton: The detector's skeleton.
        num_classes: Object classes, without background.
        settings: ``search.budget``.

    Raises:
        InputError: If the table cannot be read, or is of another detector or machine.
    """
    table = None
    if settings is not None and settings.table is not None:
        table = load_latency_table(settings.table)
        if not settings.other_machine:
            allowed = "a table of this machine, or search.budget.other_machine: true to search here for that one"
            table.require_machine(processor(table.content.conditions.device), allowed)
    return CostModel(skeleton, num_classes, latency=table)


def budget_of(settings: Settings) -> BudgetSettings:
    """Return what all detectors of the study may cost.

    Raises:
        InputError: If the settings have no budget.
    """
    budget = settings.search.budget
    if budget is None:
        raise InputError(
            "is not given, and all detectors of the study are to cost as much",
            key="search.budget",
            allowed="a budget, as --set search.budget.gflops=X; search --dry-run prints what random ones cost",
        )
    return budget


def check_budget(space: SearchSpace, settings: Settings, num_classes: int) -> Budget | None:
    """Refuse a budget that no architecture of a space keeps to, before hours are spent on it.

    Returns:
        The budget, if there is one.

    Raises:
        InputError: Naming the least reachable cost.
    """
    if settings.search.budget is None:
        return None
    from hitdet_nni.nas.budget import Budget  # noqa: PLC0415  (needs torch; most configs have none)

    model = budget_cost_model(settings.skeleton, num_classes, settings.search.budget)
    budget = Budget(model, space, settings.search.budget)
    budget.check_reachable()
    return budget


def tell_unused_budget(budget: Budget | None) -> None:
    """Say in a line that a budget bounds nothing, where no architecture of its space costs as much."""
    if budget is not None and budget.largest <= budget.limit:
        name = budget.costs.unit.name
        logger.warning(
            "search.budget.%s: %g %s bounds nothing: no architecture of the space has more than %.3g %s",
            *(budget.key, budget.limit, name, budget.largest, name),
        )


def check_initial_weights(settings: Settings, inherit: Path | None) -> None:
    """Refuse initial weights of a retraining that are named twice, or are not there.

    Args:
        settings: All settings.
        inherit: Weights file of a supernet to start from, if any.

    Raises:
        InputError: If there are two files of initial weights, or none where one is named.
    """
    pretrained = settings.retrain.pretrained
    if inherit is not None and pretrained is not None:
        raise InputError(f"got {pretrained}", key="retrain.pretrained", allowed="null with --inherit")
    for path, key in ((inherit, "--inherit"), (pretrained, "retrain.pretrained")):
        if path is not None and not path.is_file():
            raise InputError("no such file", source=path, key=key)


def check_classes(architecture: Architecture, data: DetectionData, *, trains: bool = False) -> None:
    """Refuse data of other classes than an architecture was found for, or of the same in another order.

    A detector names what it finds by the architecture's classes, in their order.

    Args:
        architecture: The architecture.
        data: The images.
        trains: Whether it is to be trained, so that ``retrain.transfer`` is a way to other classes.

    Raises:
        InputError: Naming both numbers of classes, or the first class that differs.
    """
    wanted, given = architecture.provenance.classes, data.classes
    if given == wanted:
        return
    if len(given) != len(wanted):
        found, right = f"the data has {len(given)} classes", str(len(wanted))
    else:
        first = next(index for index, pair in enumerate(zip(given, wanted, strict=True)) if len(set(pair)) > 1)
        found, right = f"class {first + 1} of the data is {given[first]!r}", repr(wanted[first])
    way = "; retrain.transfer=true trains it for the data's" if trains else ""
    raise InputError(
        found,
        source=data.train.source,
        key="categories",
        allowed=f"{right}, as the architecture {architecture.name!r} was searched for{way}",
    )
