# SSD on VGG (Table 6): mmdet's SSD512, whose accuracy and parameters are the ones printed.
_base_ = "mmdet::ssd/ssd512_coco.py"

custom_imports = dict(imports=["hitdet_nni.paper_tables.baseline_modules"], allow_failed_imports=False)

model = dict(bbox_head=dict(type="PredictingSSDHead"))
