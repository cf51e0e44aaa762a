"""From a skeleton and operators to a detector: one config function for the supernet, the sample and the final net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

import hitdet_nni.model.backbone
import hitdet_nni.model.head
import hitdet_nni.model.neck  # noqa: F401  (the three imports register our modules with mmdet)
from hitdet_nni.config.skeleton import COMPONENTS, Component, DetectorKind, Skeleton
from hitdet_nni.errors import InputError
from hitdet_nni.model.one_stage import retinanet
from hitdet_nni.model.preprocessing import PREPROCESSING
from hitdet_nni.model.searchable import Candidates
from hitdet_nni.model.two_stage import faster_rcnn

Operators = Mapping[Component, Sequence[Candidates]]
"""For each component one entry a layer: an operator name, or the candidates' names."""

HeadOperators = list[str | list[str]]
DETECTORS: Mapping[DetectorKind, Callable[[Skeleton, HeadOperators, int], dict[str, Any]]] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
}
"""For each kind of detector what stands behind the neck: mmdet's detector class, the heads, training and testing."""


def detector_config(skeleton: Skeleton, operators: Operators, num_classes: int) -> dict[str, Any]:
    """Return the mmdet model config of a detector.

    Args:
        skeleton: The parts that are not searched.
        operators: For each component one entry a layer; decided where the entry is one name.
        num_classes: Object classes, without background.

    Returns:
        A config of plain lists, numbers and strings that ``mmdet.registry.MODELS.build`` takes.

    Source:
        Section 3.3.
    """
    return {
        "_scope_": "mmdet",  # so that the parts are found whatever the caller's default scope is
        "data_preprocessor": {"type": "DetDataPreprocessor", **PREPROCESSING},
        "backbone": {
            "type": "HitBackbone",
            "operators": _plain(operators["backbone"]),
            "widths": list(skeleton.widths),
            "depths": list(skeleton.depths),
            "strides": list(skeleton.strides),
            "stem_channels": skeleton.stem_channels,
            "tail": None if skeleton.tail is None else [skeleton.tail.width, skeleton.tail.out_channels],
        },
        "neck": {
            "type": "HitNeck",
            "operators": _plain(operators["neck"]),
            "in_channels": list(skeleton.neck_channels),
            "out_channels": skeleton.neck_width,
            "start_level": skeleton.start_level,
            "extra_levels": skeleton.extra_levels,
            "extra_convs": skeleton.layout.extra_convs,
        },
        **DETECTORS[skeleton.detector](skeleton, _plain(operators["head"]), num_classes),
    }


def _plain(operators: Sequence[Candidates]) -> HeadOperators:
    return [entry if isinstance(entry, str) else list(entry) for entry in operators]


def build_detector(skeleton: Skeleton, sample: Mapping[str, str], num_classes: int) -> nn.Module:
    """Build the plain mmdet detector of a decided architecture, freshly initialised.

    Args:
        skeleton: The parts that are not searched.
        sample: Operator name of each searched layer by its label, e.g. ``{"backbone/l01": "ir_k3_d1_e3", ...}``.
        num_classes: Object classes, without background.

    Returns:
        An mmdet detector that holds the chosen operators only and no module of NNI.

    Raises:
        KeyError: If ``sample`` lacks a searched layer.
        InputError: If a name is not an operator's.
    """
    operators = {component: [sample[label] for label in skeleton.labels(component)] for component in COMPONENTS}
    return build_initialised(detector_config(skeleton, operators, num_classes))


def build_initialised(config: dict[str, Any]) -> nn.Module:
    """Build and initialise an mmdet detector without mmengine's line of log per parameter."""
    detector: nn.Module = MODELS.build(ConfigDict(config))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        detector.init_weights()  # type: ignore[operator]  # mmengine's BaseModule
    finally:
        logger.setLevel(level)
    return detector


def check_components(space: Mapping[Any, object]) -> None:
    """Refuse a space that is not of backbone, neck and head.

    Raises:
        InputError: Naming the component that is missing or unknown, or has no list of names.
    """
    for component in COMPONENTS:
        if component not in space:
            raise InputError("is missing", source="space", key=component, allowed="a list of operators")
        names = space[component]
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise InputError(f"got {names!r}", source="space", key=component, allowed="a list of operators")
    for other in (name for name in space if name not in COMPONENTS):
        raise InputError("unknown component", source="space", key=str(other), allowed=COMPONENTS)


class HitDetectorSpace(ModelSpace):  # type: ignore[misc]
    """The search space: one mmdet detector in which every searched layer is an NNI ``LayerChoice``.

    Args:
        skeleton: The parts that are not searched.
        space: Candidate operator names of each component; a component with one name is fixed at it.
        num_classes: Object classes, without background.

    Shape:
        As the mmdet detector that it holds: ``inputs`` of ``[N, 3, H, W]`` and a list of N ``DetDataSample``.

    Raises:
        InputError: If a component is missing, there is another one, or it has no candidate, a repeated one or one that
            is not an operator's name.

    Source:
        Eq. 3 (the trinity); the sub-spaces A_b, A_n, A_h of Eq. 2 are ``space``'s entries.
    """

    def __init__(self, skeleton: Skeleton, space: Mapping[Component, Sequence[str]], num_classes: int) -> None:
        super().__init__()
        check_components(space)
        self.skeleton = skeleton
        self.space = {component: tuple(space[component]) for component in COMPONENTS}
        self.num_classes = num_classes
        operators = {component: [list(space[component])] * len(skeleton.labels(component)) for component in COMPONENTS}
        self.detector = build_initialised(detector_config(skeleton, operators, num_classes))

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Delegate to the detector: losses, predictions or raw tensors by ``mode``, as mmdet defines them."""
        return self.detector(inputs, data_samples, mode=mode)
