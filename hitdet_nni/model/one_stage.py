"""The one-stage detector behind the neck: mmdet's RetinaNet with the searched head."""

from __future__ import annotations

from typing import Any

from hitdet_nni.config.skeleton import ANCHOR_RATIOS, Skeleton


def retinanet(skeleton: Skeleton, operators: list[str | list[str]], num_classes: int) -> dict[str, Any]:
    """Return the mmdet config of a RetinaNet but for preprocessing, backbone and neck.

    Args:
        skeleton: The parts that are not searched; its anchor scale is mmdet's ``octave_base_scale``.
        operators: One entry a block of the head, the classification tower's first: an operator name, or the names of
            its candidates.
        num_classes: Object classes, without background.

    Source:
        mmdet's ``retinanet_r50_fpn``, which follows Lin et al., ICCV 2017.
    """
    return {
        "type": "RetinaNet",
        "bbox_head": {
            "type": "HitRetinaHead",
            "operators": operators,
            "in_channels": skeleton.neck_width,
            "width": skeleton.head_width,
            "num_classes": num_classes,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": skeleton.anchor_scale,
                "scales_per_octave": skeleton.layout.octave_scales,
                "ratios": list(ANCHOR_RATIOS),
                "strides": list(skeleton.pyramid_strides),
            },
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0, 0.0, 0.0, 0.0],
                "target_stds": [1.0, 1.0, 1.0, 1.0],
            },
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "train_cfg": {
            "assigner": {
                "type": "MaxIoUAssigner",
                "pos_iou_thr": skeleton.layout.positive_iou,
                "neg_iou_thr": skeleton.layout.negative_iou,
                "min_pos_iou": 0,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "PseudoSampler"},  # the focal loss weighs all anchors
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 100,
        },
    }
