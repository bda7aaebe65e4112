"""The synthetic shapes in COCO format, with a schedule that two CPU cores finish in minutes."""

_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(
    imports=['mmffnet', 'mmffnet.datasets.shapes_det'], allow_failed_imports=False
)

data_root = 'data/shapes/coco/'
shapes = dict(train=1200)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
train_pipeline = [
    *load,
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
resize = dict(type='Resize', scale_factor=1.0)  # says that the scale is 1
test_pipeline = [*load, resize, dict(type='PackDetInputs', meta_keys=keys)]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='ShapesDetDataset',
        data_root=data_root,
        shapes=shapes,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ShapesDetDataset',
        data_root=data_root,
        shapes=shapes,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric=['bbox']
)
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),  # the same for all layers
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=10, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='mmffnet.ChannelsLastHook')]  # a fifth faster on CPUs
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
