"""The synthetic shapes in ADE20K's format."""

_base_ = './shapes.py'

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
    dataset=dict(
        type='ShapesSegDataset',
        data_root=data_root,
        shapes=shapes,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
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
