# ResNeXt-101 backbone, 32 groups of 4 channels (Table 2).
_base_ = "./fpn_r50_2fc.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=32,
        base_width=4,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnext101_32x4d"),
    ),
)
