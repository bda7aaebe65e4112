"""FFNet-3 on ImageNet: the official recipe without distillation."""

_base_ = ['../_base_/ffnet_classifier.py', '../_base_/imagenet_320e.py']

model = dict(
    backbone=dict(arch='ffnet3', drop_path_rate=0.35, layer_scale_init_value=1e-6),
    head=dict(in_channels=768),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=269, backend='pillow', interpolation='bicubic'),  # 256 / 0.95
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
