# TridentNet (Table 3): mmdet's own, one branch of the three in testing.
_base_ = "mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py"

custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
