"""Detectors of mmdet's shipped configurations that use the served ops, trained a step and asked to predict."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine import MessageHub
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

SIZE = 128
USES = {
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco": "CARAFEPack",
    "cornernet/cornernet_hourglass104_10xb5-crop511-210e-mstest_coco": "BiCornerPool",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": "DeformRoIPoolPack",
    "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco": "ModulatedDeformRoIPoolPack",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco": "MultiScaleDeformableAttention",
    "detectors/cascade-rcnn_r50-sac_1x_coco": "SAConv2d",
    "dyhead/atss_r50-caffe_fpn_dyhead_1x_coco": "ModulatedDeformConv2d",
    "guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco": "MaskedConv2d",
    "tood/tood_r50_fpn_1x_coco": "TOODHead",
}
"""Configuration -> a layer of it that is, or calls, a served op."""


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_shipped_configurations_train_and_predict(name):
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / f"{name}.py")
    if "batch_augments" in config.model.data_preprocessor:
        config.model.data_preprocessor.batch_augments = None
    MessageHub.get_current_instance().update_info("epoch", 0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.model)
    assert USES[name] in {type(module).__name__ for module in model.modules()}
    meta = {"img_shape": (SIZE, SIZE), "ori_shape": (SIZE, SIZE), "scale_factor": (1.0, 1.0)}
    meta |= {"batch_input_shape": (SIZE, SIZE)}
    boxes = torch.tensor([[5.0, 5, 65, 85], [40, 30, 100, 60]])
    sample = DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([1, 3])))
    inputs = [torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(2)]
    batch = {"inputs": inputs, "data_samples": [sample, copy.deepcopy(sample)]}
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    parts = [
        part
        for key, value in losses.items()
        if "loss" in key
        for part in ([value] if torch.is_tensor(value) else value)
    ]
    total = sum(part.sum() for part in parts)
    total.backward()
    assert math.isfinite(total.item())
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    alone = {"inputs": inputs[:1], "data_samples": [sample]}  # masked convolutions take one image
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(alone), mode="predict")[0].pred_instances
    assert found.bboxes.shape == (len(found), 4)
    assert torch.isfinite(found.bboxes).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    ["mmcv.ops", "mmcv.cnn.bricks.transformer", "mmcv.ops.saconv", "hitdet_nni.compat.torchvision_ops", "mmdet.models"],
)
def test_whatever_is_imported_first_the_ops_are_the_same(first):
    """mmcv.cnn imports an op, and an op extends a layer of mmcv.cnn."""
    code = (
        f"import hitdet_nni, {first}\nimport mmcv.ops, mmcv.cnn.bricks.transformer as transformer\n"
        "assert transformer.MultiScaleDeformableAttention is mmcv.ops.MultiScaleDeformableAttention\n"
        "assert issubclass(mmcv.ops.SAConv2d, mmcv.cnn.ConvAWS2d)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
