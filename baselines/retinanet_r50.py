# RetinaNet (Table 6): mmdet's own.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
