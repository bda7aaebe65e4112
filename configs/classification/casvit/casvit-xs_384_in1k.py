"""CAS-ViT-XS fine-tuned at 384x384 on ImageNet: the published command."""

_base_ = 'casvit-xs_in1k.py'

model = dict(backbone=dict(drop_path_rate=0.0))
load_from = 'mmffnet://casvit-xs'  # to be fetched by hand

load, crop, *augment = _base_.train_pipeline
crop = dict(crop, transform=dict(crop.transform, scale=384))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    batch_sampler=dict(size=384, sizes=(160, 192, 256, 288, 320, 384)),
    dataset=dict(pipeline=[load, crop, *augment]),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [  # constant after the warm-up
    dict(type='LinearLR', start_factor=1e-6, end=20, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=1024)
