"""FFNet-3 on ImageNet: the official recipe without distillation."""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_256_crop95.py',
    '../_base_/schedules/imagenet_320e.py',
]

model = dict(
    backbone=dict(arch='ffnet3', drop_path_rate=0.35, layer_scale_init_value=1e-6),
    head=dict(in_channels=768),
)
