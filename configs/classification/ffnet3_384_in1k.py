"""FFNet-3 fine-tuned at 384 x 384 on ImageNet: the official recipe."""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_30e.py',
]

model = dict(
    backbone=dict(arch='ffnet3', drop_path_rate=0.4, layer_scale_init_value=1e-6),
    head=dict(in_channels=768),
)
load_from = 'mmffnet://ffnet3'
