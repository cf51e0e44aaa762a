# MobileNetV2 backbone (Table 2). The pyramid ends at the 320 channels before the last 1x1 convolution; that convolution
# is built and runs all the same, and the published figures count it.
_base_ = "./fpn_r50_2fc.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        out_indices=(1, 2, 4, 6),
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://mmdet/mobilenet_v2"),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
