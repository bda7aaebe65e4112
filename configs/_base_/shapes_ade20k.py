"""The synthetic shapes in ADE20K's format, with a schedule that two CPU cores finish in minutes."""

_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(
    imports=['mmffnet', 'mmffnet.datasets.shapes_seg'], allow_failed_imports=False
)

data_root = 'data/shapes/ade20k/'
shapes = dict(train=2000, size=96)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
train_pipeline = [
    *load,
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ShapesSegDataset',
        data_root=data_root,
        shapes=shapes,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ShapesSegDataset',
        data_root=data_root,
        shapes=shapes,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[*load, dict(type='PackSegInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=2250, val_interval=450)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=8e-3, weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),  # the same for all layers
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=2250, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=450, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [dict(type='mmffnet.ChannelsLastHook')]  # a fifth faster on CPUs
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=16)
