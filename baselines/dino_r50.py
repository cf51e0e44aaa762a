# DINO on ResNet-50 with four levels: mmdet's own, its 1x schedule. Its figures are in no table of the paper.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"

custom_imports = dict(imports=["hitdet_nni"], allow_failed_imports=False)
