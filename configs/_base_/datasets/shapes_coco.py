"""The synthetic shapes in COCO format."""

_base_ = './shapes.py'

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
    type='mmffnet.FastCocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox'],
)
test_evaluator = val_evaluator
