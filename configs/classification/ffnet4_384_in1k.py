"""FFNet-4 fine-tuned at 384 x 384 on ImageNet: the official recipe.

The weights at 256 x 256 have not been published: they come from a training of `ffnet4_in1k.py`.
"""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_30e.py',
]

model = dict(
    backbone=dict(arch='ffnet4', drop_path_rate=0.5, layer_scale_init_value=1e-6),
    head=dict(in_channels=1024),
)
load_from = 'work_dirs/ffnet4_in1k/epoch_320.pth'
