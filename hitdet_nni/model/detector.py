"""From a skeleton and operators to a detector: one config function for the supernet, the sample and the final net."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

import hitdet_nni.model.backbone
import hitdet_nni.model.head
import hitdet_nni.model.neck  # noqa: F401  (the three imports register our modules with mmdet)
from hitdet_nni.model.searchable import Candidates
from hitdet_nni.skeleton import COMPONENTS, ROI_SIZE, Component, Skeleton

Operators = Mapping[Component, Sequence[Candidates]]
"""For each component one entry a layer: an operator name, or the candidates' names."""


def detector_config(skeleton: Skeleton, operators: Operators, num_classes: int) -> dict[str, Any]:
    """The mmdet model config of a detector.

    Args:
        skeleton: The parts that are not searched.
        operators: For each component one entry a layer; decided where the entry is one name.
        num_classes: Object classes, without background.

    Returns:
        A config of plain lists, numbers and strings that ``mmdet.registry.MODELS.build`` takes.

    Source:
        Section 3.3 for the parts, the released configuration for the RPN, the assigners and the test settings.
    """
    strides = list(skeleton.feature_reductions)
    box_loss = {"type": "SmoothL1Loss", "loss_weight": 1.0}
    return {
        "type": "FasterRCNN",
        "_scope_": "mmdet",  # so that the parts are found whatever the caller's default scope is
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
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
            "in_channels": list(skeleton.feature_channels),
            "out_channels": skeleton.neck_width,
            "extra_levels": 1,
        },
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": skeleton.neck_width,
            "feat_channels": skeleton.neck_width,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [skeleton.anchor_scale],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [*strides, 2 * strides[-1]],
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [1.0, 1.0, 1.0, 1.0]},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {**box_loss, "beta": 1.0 / 9.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": ROI_SIZE, "sampling_ratio": 2},
                "out_channels": skeleton.neck_width,
                "featmap_strides": strides,
            },
            "bbox_head": {
                "type": "HitBoxHead",
                "operators": _plain(operators["head"]),
                "in_channels": skeleton.neck_width,
                "width": skeleton.head_width,
                "fc_out_channels": skeleton.head_fc,
                "roi_feat_size": ROI_SIZE,
                "num_classes": num_classes,
                "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {**box_loss, "beta": 1.0},
            },
        },
        "train_cfg": _train_config(skeleton),
        "test_cfg": {
            "rpn": _proposals(skeleton.proposals_test),
            "rcnn": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
        },
    }


def _plain(operators: Sequence[Candidates]) -> list[str | list[str]]:
    return [entry if isinstance(entry, str) else list(entry) for entry in operators]


def _proposals(count: int) -> dict[str, Any]:
    return {
        "nms_pre": count,
        "max_per_img": count,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }


def _train_config(skeleton: Skeleton) -> dict[str, Any]:
    def assigner(positive: float, negative: float, minimum: float, low_quality: bool) -> dict[str, Any]:
        return {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": positive,
            "neg_iou_thr": negative,
            "min_pos_iou": minimum,
            "match_low_quality": low_quality,
            "ignore_iof_thr": -1,
        }

    def sampler(count: int, fraction: float, add_truth: bool) -> dict[str, Any]:
        return {
            "type": "RandomSampler",
            "num": count,
            "pos_fraction": fraction,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": add_truth,
        }

    return {
        "rpn": {
            "assigner": assigner(0.7, 0.3, 0.3, low_quality=True),
            "sampler": sampler(256, 0.5, add_truth=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(skeleton.proposals_train),
        "rcnn": {
            "assigner": assigner(0.5, 0.5, 0.5, low_quality=False),
            "sampler": sampler(skeleton.roi_samples, 0.25, add_truth=True),
            "pos_weight": -1,
            "debug": False,
        },
    }


def build_detector(skeleton: Skeleton, sample: Mapping[str, str], num_classes: int) -> nn.Module:
    """Build the plain mmdet detector of a decided architecture, freshly initialised.

    Args:
        skeleton: The parts that are not searched.
        sample: Operator name of each searched layer by its label, e.g. ``{"backbone/l01": "ir_k3_d1_e3", ...}``.
        num_classes: Object classes, without background.

    Returns:
        An mmdet ``FasterRCNN`` that holds the chosen operators only and no module of NNI.

    Raises:
        KeyError: If ``sample`` lacks a searched layer.
        InputError: If a name is not an operator's.
    """
    operators = {component: [sample[label] for label in skeleton.labels(component)] for component in COMPONENTS}
    return _build(detector_config(skeleton, operators, num_classes))


def _build(config: dict[str, Any]) -> nn.Module:
    """Build and initialise a detector without mmengine's line of log per parameter."""
    detector: nn.Module = MODELS.build(ConfigDict(config))
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        detector.init_weights()  # type: ignore[operator]  # mmengine's BaseModule
    finally:
        logger.setLevel(level)
    return detector


class HitDetectorSpace(ModelSpace):  # type: ignore[misc]
    """The search space: one mmdet detector in which every searched layer is an NNI ``LayerChoice``.

    Args:
        skeleton: The parts that are not searched.
        space: Candidate operator names of each component; a component with one name is fixed at it.
        num_classes: Object classes, without background.

    Shape:
        As the mmdet detector that it holds: ``inputs`` of ``[N, 3, H, W]`` and a list of N ``DetDataSample``.

    Raises:
        InputError: If a component has no candidate, a repeated one or one that is not an operator's name.

    Source:
        Eq. 3 (the trinity); the sub-spaces A_b, A_n, A_h of Eq. 2 are ``space``'s entries.
    """

    def __init__(self, skeleton: Skeleton, space: Mapping[Component, Sequence[str]], num_classes: int) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.space = {component: tuple(space[component]) for component in COMPONENTS}
        self.num_classes = num_classes
        operators = {component: [list(space[component])] * len(skeleton.labels(component)) for component in COMPONENTS}
        self.detector = _build(detector_config(skeleton, operators, num_classes))

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Delegate to the detector: losses, predictions or raw tensors by ``mode``, as mmdet defines them."""
        return self.detector(inputs, data_samples, mode=mode)
