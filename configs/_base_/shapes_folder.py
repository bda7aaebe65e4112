"""The synthetic shapes with a label each, and a schedule that two CPU cores finish in minutes."""

_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(
    imports=['mmffnet', 'mmffnet.datasets.shapes_cls'], allow_failed_imports=False
)

data_root = 'data/shapes/folder/'
data_preprocessor = dict(
    num_classes=5, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96))]
train_pipeline = [
    *load,
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ShapesClsDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ShapesClsDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=[*load, dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 2))
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),  # the same for all layers
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=8, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
custom_hooks = [dict(type='mmffnet.ChannelsLastHook')]  # a fifth faster on CPUs
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=32)
