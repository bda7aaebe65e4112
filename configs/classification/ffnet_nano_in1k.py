"""FFNet nano on ImageNet with the official recipe of its larger sisters."""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/imagenet_320e.py',
]

model = dict(backbone=dict(arch='nano', drop_path_rate=0.0), head=dict(in_channels=256))
