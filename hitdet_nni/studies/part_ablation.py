"""Each searched part alone in the baseline (Table 5)."""

from __future__ import annotations

from collections.abc import Mapping

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.nas.provenance import describe_architecture


def baseline_sample(settings: Settings) -> dict[str, str]:
    """Return the baseline: every searched layer has its component's operator of ``screening.fixed``."""
    fixed = settings.screening.fixed
    return {layer.label: getattr(fixed, layer.component) for layer in settings.skeleton.searched_layers()}


def decided(name: str, sample: Mapping[str, str], settings: Settings, data: DetectionData) -> Architecture:
    """Describe an architecture that no search has found; its space holds its own operators only."""
    space: SearchSpace = {
        component: sorted({sample[label] for label in settings.skeleton.labels(component)}) for component in COMPONENTS
    }
    return describe_architecture(name, dict(sample), space, settings, data.classes, source="study")


def part_architectures(found: Architecture, settings: Settings, data: DetectionData) -> dict[str, Architecture]:
    """Return the baseline, the baseline with one part of a found architecture each, and that architecture, by name.

    Args:
        found: The found architecture.
        settings: Give the baseline's operators; their skeleton is the architecture's.
        data: The images.

    Source:
        Table 5. The paper's baseline is a ResNet-50 with FPN; here it is the skeleton with one operator a part.
    """
    baseline = baseline_sample(settings)
    samples = {"baseline": baseline}
    for component in COMPONENTS:
        part = {label: found.sample[label] for label in settings.skeleton.labels(component)}
        samples[f"searched {component}"] = {**baseline, **part}
    architectures = {name: decided(name, sample, settings, data) for name, sample in samples.items()}
    return {**architectures, "all searched": found}
