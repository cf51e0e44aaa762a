# The DetNAS-1.3G backbone with the NAS-FPN neck (Tables 1 and 2): two searches put together.
_base_ = "./fpn_detnas.py"

model = dict(
    data_preprocessor=dict(pad_size_divisor=128),  # levels must be whole multiples of each other, down to stride 64
    neck=dict(
        _delete_=True,
        type="PooledInputNASFPN",
        in_channels=[96, 240, 480, 1024, 1024],
        out_channels=256,
        num_outs=5,
        stack_times=7,
        norm_cfg=dict(type="BN"),
    ),
)
