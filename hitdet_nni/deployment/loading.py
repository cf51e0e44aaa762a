"""From an architecture and its trained weights to the detector without mmdet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.skeleton import DetectorKind
from hitdet_nni.deployment.detector import Detector
from hitdet_nni.deployment.one_stage import OneStageDetector, state_by_level
from hitdet_nni.deployment.two_stage import TwoStageDetector
from hitdet_nni.engine.weights_file import read_state
from hitdet_nni.errors import InputError

CERTAIN = 100.0
"""A logit beside which what initial weights add does not matter."""

DETECTORS: Mapping[DetectorKind, type[Detector]] = {"faster_rcnn": TwoStageDetector, "retinanet": OneStageDetector}


def untrained_detector(architecture: Architecture) -> Detector:
    """Build the detector of an architecture with initial weights, for its time and not for what it says.

    It finds nothing, whatever the image is, while its region proposal network proposes as many RoIs as a trained one.
    """
    detector = DETECTORS[architecture.skeleton.detector](architecture)
    with torch.no_grad():
        if isinstance(detector, TwoStageDetector):
            background = detector.roi_head.num_classes
            detector.roi_head.bbox_head.fc_cls.bias[background] = CERTAIN
        elif isinstance(detector, OneStageDetector):
            nn.init.constant_(detector.bbox_head.retina_cls.get_parameter("bias"), -CERTAIN)
    return detector.eval().requires_grad_(False)


def load_detector(architecture: Architecture, weights: str | Path) -> Detector:
    """Build the detector of an architecture and load its trained weights; neither NNI nor mmdet is imported.

    Args:
        architecture: What was trained.
        weights: File of a retraining; nothing in it is executed.

    Returns:
        The detector, for inference: batch normalisation uses its running statistics, and nothing wants a gradient.

    Raises:
        InputError: If the file is missing, does not hold weights, or holds those of another architecture.
    """
    detector = DETECTORS[architecture.skeleton.detector](architecture)
    state = read_state(Path(weights))
    try:
        if isinstance(detector, OneStageDetector):
            state = state_by_level(state, len(architecture.skeleton.pyramid_strides))
        detector.load_state_dict(state)
    except (RuntimeError, IndexError, TypeError) as error:
        problem = " ".join(str(error).split()[:30])
        raise InputError(f"does not fit the architecture: {problem} ...", source=weights) from None
    return detector.eval().requires_grad_(False)
