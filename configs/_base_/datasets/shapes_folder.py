"""The synthetic shapes with a label each."""

_base_ = './shapes.py'

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
    dataset=dict(
        type='ShapesClsDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
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
