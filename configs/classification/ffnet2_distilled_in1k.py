"""FFNet-2 distilled on ImageNet from RegNetY-16GF: the official recipe."""

_base_ = './ffnet1_distilled_in1k.py'

model = dict(
    backbone=dict(arch='ffnet2', drop_path_rate=0.08),
    head=dict(in_channels=704),
)
