"""The two-stage detector behind the neck: mmdet's Faster R-CNN with the searched box head."""

from __future__ import annotations

from typing import Any

from hitdet_nni.config.skeleton import ANCHOR_RATIOS, ROI_SIZE, Skeleton


def faster_rcnn(skeleton: Skeleton, operators: list[str | list[str]], num_classes: int) -> dict[str, Any]:
    """Return the mmdet config of a Faster R-CNN but for preprocessing, backbone and neck.

    Args:
        skeleton: The parts that are not searched.
        operators: One entry a block of the head: an operator name, or the names of its candidates.
        num_classes: Object classes, without background.

    Source:
        The released configuration, for the RPN, the assigners and the test settings too.
    """
    box_loss = {"type": "SmoothL1Loss", "loss_weight": 1.0}
    inclusive = skeleton.boxes == "inclusive"
    coder = "LegacyDeltaXYWHBBoxCoder" if inclusive else "DeltaXYWHBBoxCoder"
    anchors = {"type": "LegacyAnchorGenerator", "center_offset": 0.5} if inclusive else {"type": "AnchorGenerator"}
    return {
        "type": "FasterRCNN",
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": skeleton.neck_width,
            "feat_channels": skeleton.neck_width,
            "anchor_generator": {
                **anchors,
                "scales": [skeleton.anchor_scale],
                "ratios": list(ANCHOR_RATIOS),
                "strides": list(skeleton.pyramid_strides),
            },
            "bbox_coder": {"type": coder, "target_stds": [1.0, 1.0, 1.0, 1.0]},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {**box_loss, "beta": 1.0 / 9.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {
                    "type": "RoIAlign",
                    "output_size": ROI_SIZE,
                    "sampling_ratio": 2,
                    "aligned": not inclusive,
                },
                "out_channels": skeleton.neck_width,
                "featmap_strides": list(skeleton.neck_strides),
            },
            "bbox_head": {
                "type": "HitBoxHead",
                "operators": operators,
                "in_channels": skeleton.neck_width,
                "width": skeleton.head_width,
                "fc_out_channels": skeleton.head_fc,
                "roi_feat_size": ROI_SIZE,
                "num_classes": num_classes,
                "bbox_coder": {"type": coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
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

    layout = skeleton.layout
    return {
        "rpn": {
            "assigner": assigner(layout.positive_iou, layout.negative_iou, layout.negative_iou, low_quality=True),
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
