"""What NNI's strategies find, made architectures of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nni.nas.oneshot.pytorch.strategy import OneShotStrategy

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.choices import find_choices
from hitdet_nni.nas.decode import decode, log_probabilities
from hitdet_nni.nas.provenance import describe_architecture


def require_detector_space(space: Any, source: str) -> None:
    """Refuse what only detector spaces have, in other spaces.

    Args:
        space: Any model space.
        source: What needs a detector's.

    Raises:
        InputError: Naming what other spaces have in its place.
    """
    if not isinstance(space, HitDetectorSpace):
        allowed = 'a HitDetectorSpace; of other spaces export_top_models(formatter="dict") tells what was found'
        raise InputError(f"got a {type(space).__name__}", source=source, allowed=allowed)


def complete_sample(space: HitDetectorSpace, exported: Mapping[str, str]) -> dict[str, str]:
    """Return one operator for every searched layer out of what NNI exports.

    NNI knows nothing of the layers of a component that has one candidate only, and never minds labels too many.

    Args:
        space: The space that was searched; supernets and frozen ones will do.
        exported: Operator name by label, as ``export_top_models(formatter="dict")`` gives it.

    Raises:
        InputError: If a label is missing or unknown, a name is none of the candidates, or the space is no detector's.
    """
    require_detector_space(space, "complete_sample")
    candidates = layer_candidates(space.skeleton, space.space)
    for label, names in candidates.items():
        name = exported.get(label, names[0] if len(names) == 1 else None)
        if name not in names:
            raise InputError(f"got {name!r}", source="sample", key=label, allowed=names)
    unknown = sorted(set(exported) - set(candidates))
    if unknown:
        raise InputError(f"unknown layer {unknown[0]!r}", source="sample", allowed=candidates)
    return decode({label: {name: 0.0} for label, name in exported.items()}, candidates)


def strongest_sample(strategy: OneShotStrategy, budget: Budget | None = None) -> dict[str, str]:
    """Return the operator with the largest architecture parameter in every layer, or the best ones within a budget.

    Without a budget that is what DARTS and GumbelDARTS export; Proxyless draws from the probabilities each time that
    it exports.

    Args:
        strategy: A differentiable strategy that has run on a :class:`HitDetectorSpace`.
        budget: What the whole detector may cost.

    Raises:
        InputError: If the strategy has no architecture parameters, nothing in the space is within the budget, or the
            space is no detector's.
    """
    space = strategy.supernet
    require_detector_space(space, "strongest_sample")
    alphas = {label: choice.alphas() for label, choice in find_choices(space).items()}
    if not alphas:
        raise InputError("has no architecture parameters", source=type(strategy).__name__, allowed="DARTS and its kin")
    return decode(log_probabilities(alphas), layer_candidates(space.skeleton, space.space), budget)


def describe_sample(
    name: str,
    space: HitDetectorSpace,
    exported: Mapping[str, str],
    settings: Settings,
    data: DetectionData,
    source: str,
) -> Architecture:
    """Build an architecture with its provenance and cost, for :func:`hitdet_nni.config.architecture.save_architecture`.

    Args:
        name: A name for people.
        space: The space that was searched.
        exported: What the strategy found in it.
        settings: Seed and data of the search.
        data: The images.
        source: What found it, e.g. ``"DARTS of NNI"``.

    Raises:
        InputError: If it is not a sample of the space, the data has another number of classes than the space, or the
            space is no detector's.
    """
    require_detector_space(space, "describe_sample")
    if space.num_classes != len(data.classes):
        raise InputError(
            f"the data has {len(data.classes)} classes",
            source=data.train.source,
            key="categories",
            allowed=[space.num_classes],
        )
    found_with = settings.model_copy(update={"skeleton": space.skeleton})
    sample = complete_sample(space, exported)
    return describe_architecture(name, sample, space.space, found_with, data.classes, source=source)
