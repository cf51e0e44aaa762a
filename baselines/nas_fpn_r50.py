# NAS-FPN neck (Tables 1 and 2), moved from RetinaNet to the two-stage detector: seven stacked cells at 256 channels on
# strides 4 to 64. The coarsest level is C4 max-pooled, with a 1x1 convolution of its own like the other four.
_base_ = "./fpn_r50_2fc.py"

custom_imports = dict(imports=["hitdet_nni.paper_tables.baseline_modules"])

model = dict(
    data_preprocessor=dict(pad_size_divisor=128),  # levels must be whole multiples of each other, down to stride 64
    neck=dict(
        _delete_=True,
        type="PooledInputNASFPN",
        in_channels=[256, 512, 1024, 2048, 2048],
        out_channels=256,
        num_outs=5,
        stack_times=7,
        norm_cfg=dict(type="BN"),
    ),
)
