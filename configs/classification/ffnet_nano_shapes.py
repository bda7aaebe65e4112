"""FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = ['../_base_/datasets/shapes_folder.py', '../_base_/schedules/shapes_cls.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='FFNet',
        arch='nano',
        out_indices=3,
        out_norm_cfg=dict(type='BN'),
        drop_path_rate=0.0,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=5,
        in_channels=256,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)
