"""TransNeXt-Small fine-tuned at 384x384 on ImageNet: the official recipe."""

_base_ = 'transnext-small_in1k.py'

model = dict(
    backbone=dict(drop_path_rate=0.7), train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)])
)
load_from = 'mmffnet://transnext-small'

load, crop, *augment = _base_.train_pipeline
train_pipeline = [load, dict(crop, scale=384), *augment]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = []  # the learning rate is constant
train_cfg = dict(max_epochs=5)
