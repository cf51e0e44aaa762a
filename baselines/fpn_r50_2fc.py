# FPN baseline (rows "FPN" of Tables 1, 2 and 5): mmdet's own Faster R-CNN, 1x schedule on COCO.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

# Serves mmcv.ops where mmcv is not compiled; every baseline below inherits this.
custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
