# PANet's neck (Table 3): a bottom-up path behind the FPN.
_base_ = "./fpn_r50_2fc.py"

model = dict(neck=dict(type="PAFPN"))
