import itertools
import math

import mmdet.models  # noqa: F401  registers the detectors
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from references import plain_iou


def detector(name, nms):
    anchors = {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
    sampler = {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5}
    box_loss, classes = {"type": "L1Loss"}, {"type": "CrossEntropyLoss"}
    config = {
        "data_preprocessor": {"type": "DetDataPreprocessor", "pad_size_divisor": 32},
        "backbone": {"type": "ResNet", "depth": 50, "stem_channels": 8, "base_channels": 8, "style": "pytorch"},
        "neck": {"type": "FPN", "in_channels": [32, 64, 128, 256], "out_channels": 16, "num_outs": 5},
    }
    if name == "RetinaNet":
        head = {"type": "RetinaHead", "num_classes": 4, "in_channels": 16, "feat_channels": 16, "stacked_convs": 1}
        head |= {"anchor_generator": anchors | {"octave_base_scale": 4, "scales_per_octave": 1}, "bbox_coder": coder}
        head |= {"loss_cls": {"type": "FocalLoss"}, "loss_bbox": box_loss}
        train = {"assigner": assigner, "sampler": {"type": "PseudoSampler"}, "allowed_border": -1, "pos_weight": -1}
        test = {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": nms, "max_per_img": 20}
        return MODELS.build(
            ConfigDict(config | {"type": name, "bbox_head": head, "train_cfg": train, "test_cfg": test})
        )
    config["backbone"] |= {"dcn": {"type": "DCNv2", "deform_groups": 1}, "stage_with_dcn": (False, False, False, True)}
    rpn = {"type": "RPNHead", "in_channels": 16, "feat_channels": 16, "anchor_generator": anchors | {"scales": [4]}}
    rpn |= {"bbox_coder": coder, "loss_cls": classes | {"use_sigmoid": True}, "loss_bbox": box_loss}
    roi_layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
    extractor = {"type": "SingleRoIExtractor", "roi_layer": roi_layer, "out_channels": 16}
    box_head = {"type": "Shared2FCBBoxHead", "in_channels": 16, "fc_out_channels": 32, "num_classes": 4}
    box_head |= {"bbox_coder": coder, "loss_cls": classes, "loss_bbox": box_loss}
    roi_head = {"type": "StandardRoIHead", "bbox_head": box_head}
    roi_head["bbox_roi_extractor"] = extractor | {"featmap_strides": [4, 8, 16, 32]}
    common = {"assigner": assigner, "sampler": sampler, "pos_weight": -1}
    proposal = {"nms_pre": 100, "max_per_img": 50, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    return MODELS.build(
        ConfigDict(
            config
            | {"type": name, "rpn_head": rpn, "roi_head": roi_head}
            | {"train_cfg": {"rpn": common | {"allowed_border": -1}, "rpn_proposal": proposal, "rcnn": common}}
            | {"test_cfg": {"rpn": proposal, "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 20}}}
        )
    )


@pytest.mark.parametrize("nms_type", ["nms", "soft_nms"])
@pytest.mark.parametrize("name", ["FasterRCNN", "RetinaNet"])
def test_mmdet_detectors_train_and_predict(name, nms_type):
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = detector(name, {"type": nms_type, "iou_threshold": 0.5})
    samples = []
    for corner in (5.0, 20.0):
        boxes = torch.tensor([[corner, corner, corner + 20, corner + 30], [0, 0, 16, 16]])
        meta = {"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)}
        samples.append(
            DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([1, 3])))
        )
    batch = {
        "inputs": [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in samples],
        "data_samples": samples,
    }
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode="loss")
    total = sum(
        value.sum()
        for key, value in losses.items()
        for value in ([value] if torch.is_tensor(value) else value)
        if "loss" in key
    )
    total.backward()
    assert math.isfinite(total.item())
    assert model.backbone.layer4[0].conv2.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        for result in model(**model.data_preprocessor(batch), mode="predict"):
            found = result.pred_instances
            assert 0 < len(found) <= 20
            assert found.scores.diff().max() <= 0
            if nms_type == "nms":
                for label in found.labels.unique():
                    boxes = found.bboxes[found.labels == label].tolist()
                    assert all(plain_iou(a, b) <= 0.5 + 1e-4 for a, b in itertools.combinations(boxes, 2))
