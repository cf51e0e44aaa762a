"""One operator at a random layer of one part of the baseline (Fig. 3)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.studies.part_ablation import baseline_sample, decided
from hitdet_nni.studies.retrainings import Repeated, Trained

FIGURE_3 = tuple(
    f"{family}_k{kernel}_d{dilation}{expansion}"
    for family, expansion in (("conv", ""), ("ir", "_e3"))
    for kernel in (3, 5)
    for dilation in (1, 2, 3)
)
"""The twelve operators of Fig. 3; it does not state the expansion."""

REPEATS = 6
"""Random layers that each operator is tried at (section 4.4)."""


@dataclass(frozen=True)
class Insertion:
    """An operator at one layer of the baseline.

    Attributes:
        component: The part.
        operator: The operator.
        label: The layer that has it.
        repeat: Number of the repetition, from 0.
    """

    component: Component
    operator: str
    label: str
    repeat: int

    @property
    def name(self) -> str:
        """A name that is also one of a folder."""
        return f"{self.component}-{self.operator}-{self.repeat}"


def insertions(
    settings: Settings, operators: Sequence[str], components: Sequence[Component] = COMPONENTS, repeats: int = REPEATS
) -> list[Insertion]:
    """Return every operator at ``repeats`` layers of every part, or at all where the part has fewer.

    The layers of a part come in an order that the seed shuffles, the same for all operators; none is taken twice, which
    would be the same training. Nor is one that has the operator in the baseline.
    """
    found, baseline = [], baseline_sample(settings)
    for component in components:
        labels = settings.skeleton.labels(component)
        order = random.Random(f"{settings.seed} {component}").sample(labels, len(labels))
        found += [
            Insertion(component, operator, label, repeat)
            for operator in operators
            for repeat, label in enumerate(order[:repeats])
            if baseline[label] != operator
        ]
    return found


def insertion_architectures(
    chosen: Sequence[Insertion], settings: Settings, data: DetectionData
) -> dict[str, Architecture]:
    """Return the baseline and each insertion, by name."""
    baseline = baseline_sample(settings)
    changed = {one.name: {**baseline, one.label: one.operator} for one in chosen}
    return {name: decided(name, sample, settings, data) for name, sample in {"baseline": baseline, **changed}.items()}


@dataclass(frozen=True)
class OperatorEffect(Repeated):
    """mAP of one operator in one part, over the repetitions.

    Attributes:
        component: The part.
        operator: The operator.
        accuracies: mAP of each repetition, mean over its seeds.
    """

    component: Component
    operator: str
    accuracies: tuple[float, ...]


def effects(chosen: Sequence[Insertion], trained: Mapping[str, Trained]) -> list[OperatorEffect]:
    """Gather the repetitions, in the order of ``chosen``."""
    groups: dict[tuple[Component, str], list[float]] = {}
    for one in chosen:
        groups.setdefault((one.component, one.operator), []).append(trained[one.name].mean)
    return [OperatorEffect(component, operator, tuple(found)) for (component, operator), found in groups.items()]
