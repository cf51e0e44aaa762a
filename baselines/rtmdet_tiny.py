# RTMDet-tiny: mmdet's own. Its figures are in no table of the paper.
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"

custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
