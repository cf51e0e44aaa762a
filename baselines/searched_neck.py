# Table 5: the FPN baseline with Hit-Detector's neck, on ResNet-50's channels.
_base_ = "./fpn_r50_2fc.py"

from hitdet_nni.cost.mmdet_config import searched_part  # noqa: E402  (below _base_, or mmengine takes it for a lazy config)

custom_imports = dict(imports=["hitdet_nni.model.neck"])

model = dict(
    neck=dict(_delete_=True, **{**searched_part("hit_detector", "neck"), "in_channels": [256, 512, 1024, 2048]}),
)
