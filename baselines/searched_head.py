# Table 5: the FPN baseline with Hit-Detector's head.
_base_ = "./fpn_r50_2fc.py"

from hitdet_nni.cost.mmdet_config import searched_part  # noqa: E402  (below _base_, or mmengine takes it for a lazy config)

custom_imports = dict(imports=["hitdet_nni.model.head"])

model = dict(roi_head=dict(bbox_head=dict(_delete_=True, **searched_part("hit_detector", "head"))))
