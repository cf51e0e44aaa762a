# Table 5: the FPN baseline with Hit-Detector's backbone.
_base_ = "./fpn_r50_2fc.py"

from hitdet_nni.cost.mmdet_config import searched_part  # noqa: E402  (below _base_, or mmengine takes it for a lazy config)

custom_imports = dict(imports=["hitdet_nni.model.backbone"])

model = dict(
    backbone=dict(_delete_=True, **searched_part("hit_detector", "backbone")),
    neck=dict(in_channels=[48, 96, 256, 2048]),
)
