"""ImageNet at 384 x 384, 64 images on each of 8 GPUs; test images are not cropped."""

_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py'

load, crop, *augment = _base_.train_pipeline
train_pipeline = [load, dict(crop, scale=384), *augment]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, drop_last=True, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
