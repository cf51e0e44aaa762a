# DetNAS-1.3G backbone (Tables 1 and 2): Chen et al., NeurIPS 2019, its network "COCO-FPN-1.3G".
# A letter a block: 3, 5, 7 the kernel of a ShuffleNetV2 block, x a block of three separable 3x3 convolutions.
_base_ = "./fpn_r50_4c1fc.py"

custom_imports = dict(imports=["hitdet_nni.paper_tables.baseline_modules"])

model = dict(
    backbone=dict(
        _delete_=True,
        type="DetNAS",
        stem_channels=48,
        widths=[96, 240, 480, 960],
        blocks=["33x57537", "3x57xx73", "755x737775x53xxx", "5xxxxxxx"],
        last_channels=1024,
    ),
    neck=dict(in_channels=[96, 240, 480, 1024]),
)
