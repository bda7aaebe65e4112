"""FFNet-2 on ImageNet: the official recipe without distillation."""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/imagenet_320e.py',
]

model = dict(
    backbone=dict(arch='ffnet2', drop_path_rate=0.15),
    head=dict(in_channels=704),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
