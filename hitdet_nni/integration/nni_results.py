"""What NNI's strategies find, made architectures of this package."""

from __future__ import annotations

from collections.abc import Mapping

from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.oneshot.pytorch.supermodule.proxyless import ProxylessMixedLayer

from hitdet_nni.config.architecture import SCHEMA_VERSION, Architecture, Provenance
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.runs.run_directory import git_commit, plain, versions
from hitdet_nni.search.description import cost_records


def complete_sample(space: HitDetectorSpace, exported: Mapping[str, str]) -> dict[str, str]:
    """One operator for every searched layer out of what NNI exports.

    NNI knows nothing of the layers of a component that has one candidate only, and never minds labels too many.

    Args:
        space: The space that was searched; supernets and frozen ones will do.
        exported: Operator name by label, as ``export_top_models(formatter="dict")`` gives it.

    Raises:
        InputError: If a label is missing or unknown, or a name is none of the candidates.
    """
    sample: dict[str, str] = {}
    for layer in space.skeleton.searched_layers():
        candidates = space.space[layer.component]
        name = exported.get(layer.label, candidates[0] if len(candidates) == 1 else None)
        if name not in candidates:
            raise InputError(f"got {name!r}", source="sample", key=layer.label, allowed=candidates)
        sample[layer.label] = name
    unknown = sorted(set(exported) - set(sample))
    if unknown:
        raise InputError(f"unknown layer {unknown[0]!r}", source="sample", allowed=sample)
    return sample


def strongest_sample(strategy: OneShotStrategy) -> dict[str, str]:
    """The operator with the largest architecture parameter in every layer.

    That is what DARTS and GumbelDARTS export; Proxyless draws from the probabilities each time that it exports.

    Args:
        strategy: A differentiable strategy that has run on a :class:`HitDetectorSpace`.

    Raises:
        InputError: If the strategy has no architecture parameters.
    """
    exported: dict[str, str] = {}
    for layer in strategy.supernet.modules():
        if isinstance(layer, ProxylessMixedLayer):
            exported |= DifferentiableMixedLayer.export(layer, {})
        elif isinstance(layer, DifferentiableMixedLayer):
            exported |= layer.export({})
    if not exported:
        raise InputError("has no architecture parameters", source=type(strategy).__name__, allowed="DARTS and its kin")
    return complete_sample(strategy.supernet, exported)


def describe_sample(
    name: str,
    space: HitDetectorSpace,
    exported: Mapping[str, str],
    settings: Settings,
    data: DetectionData,
    source: str,
) -> Architecture:
    """An architecture with its provenance and cost, for :func:`hitdet_nni.config.architecture.save_architecture`.

    Args:
        name: A name for people.
        space: The space that was searched.
        exported: What the strategy found in it.
        settings: Seed and data of the search.
        data: The pictures.
        source: What found it, e.g. ``"DARTS of NNI"``.

    Raises:
        InputError: If it is not a sample of the space, or the data has another number of classes than the space.
    """
    if space.num_classes != len(data.classes):
        raise InputError(
            f"the data has {len(data.classes)} classes",
            source=data.train.source,
            key="categories",
            allowed=[space.num_classes],
        )
    sample = complete_sample(space, exported)
    return Architecture(
        schema_version=SCHEMA_VERSION,
        name=name,
        skeleton=space.skeleton,
        sample=sample,
        provenance=Provenance(
            source=source,
            classes=data.classes,
            space={component: list(names) for component, names in space.space.items()},
            seed=settings.seed,
            data=plain(settings)["data"],
            versions=versions(),
            git_commit=git_commit(),
            cost=cost_records(space.skeleton, sample, space.num_classes),
        ),
    )
