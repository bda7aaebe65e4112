"""ImageNet at 256 x 256, 128 images on each of 8 GPUs; test images cropped to 90 %."""

_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py'

# The training pipeline is the inherited one. The official colour jitter of 0.4 is not missing: timm
# leaves it out where there is RandAugment.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=284, backend='pillow', interpolation='bicubic'),  # 256 / 0.9
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, drop_last=True)
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
