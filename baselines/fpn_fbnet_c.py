# FBNet-C backbone (Table 2), searched for ImageNet: Wu et al., CVPR 2019, the architecture of Figure 4 / Table 5 there.
# One of its 22 layers is "skip" (second of stage 2) and therefore absent.
_base_ = "./fpn_r50_2fc.py"

custom_imports = dict(imports=["hitdet_nni.paper_tables.baseline_modules"])

model = dict(
    backbone=dict(
        _delete_=True,
        type="FBNet",
        stem_channels=16,
        widths=[16, 24, 32, 64, 112, 184, 352],
        depths=[1, 3, 4, 4, 4, 4, 1],
        strides=[1, 2, 2, 2, 1, 2, 1],
        operators=[
            *["ir_k3_d1_e1"],
            *["ir_k3_d1_e6", "ir_k3_d1_e1", "ir_k3_d1_e1"],
            *["ir_k5_d1_e6", "ir_k5_d1_e3", "ir_k5_d1_e6", "ir_k3_d1_e6"],
            *["ir_k5_d1_e6", "ir_k5_d1_e3", "ir_k5_d1_e6", "ir_k5_d1_e6"],
            *["ir_k5_d1_e6", "ir_k5_d1_e6", "ir_k5_d1_e6", "ir_k5_d1_e3"],
            *["ir_k5_d1_e6", "ir_k5_d1_e6", "ir_k5_d1_e6", "ir_k5_d1_e6"],
            *["ir_k3_d1_e6"],
        ],
        last_channels=1984,
    ),
    neck=dict(in_channels=[24, 32, 112, 1984]),
)
