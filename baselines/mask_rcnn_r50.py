# Mask R-CNN (Table 3): mmdet's own. Training it needs annotations with masks.
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
