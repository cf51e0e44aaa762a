# FPN with the heavier head of Tables 1 and 5: four 3x3 convolutions and one fully connected layer.
_base_ = "./fpn_r50_2fc.py"

model = dict(roi_head=dict(bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256)))
