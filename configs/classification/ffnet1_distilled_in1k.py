"""FFNet-1 distilled on ImageNet from RegNetY-16GF: the official recipe."""

_base_ = [
    '../_base_/models/ffnet_distilled.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/imagenet_320e.py',
]

model = dict(
    backbone=dict(arch='ffnet1', drop_path_rate=0.02),
    head=dict(in_channels=640),
)
