# Deformable convolutions (Table 3) in the last three stages, in the FPN baseline.
_base_ = "./fpn_r50_2fc.py"

model = dict(
    backbone=dict(
        dcn=dict(type="DCN", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ),
)
