"""ImageNet at 256 x 256; test images cropped to 95 %."""

_base_ = './imagenet_256.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=269, backend='pillow', interpolation='bicubic'),  # 256 / 0.95
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
