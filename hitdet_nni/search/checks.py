"""What is refused before anything is computed: neither torch nor a library of networks is needed to say so."""

from __future__ import annotations

from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.errors import InputError


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


def check_budget(space: SearchSpace, settings: Settings, num_classes: int) -> None:
    """Refuse a budget that no architecture of a space keeps to, before hours are spent on it.

    Raises:
        InputError: Naming the least reachable cost.
    """
    if settings.search.budget is not None:
        # It needs torch, and most configs have none.
        from hitdet_nni.search.budget import Budget, budget_cost_model  # noqa: PLC0415

        model = budget_cost_model(settings.skeleton, num_classes, settings.search.budget)
        Budget(model, space, settings.search.budget).check_reachable()


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


def check_classes(architecture: Architecture, data: DetectionData) -> None:
    """Refuse data of another number of classes than an architecture was found for.

    Raises:
        InputError: Naming both numbers.
    """
    if architecture.num_classes != len(data.classes):
        raise InputError(
            f"the data has {len(data.classes)} classes",
            source=data.train.source,
            key="categories",
            allowed=f"{architecture.num_classes}, as the architecture {architecture.name!r} was searched for",
        )
