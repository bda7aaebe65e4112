"""Cityscapes in crops of 1024x1024; test images of 1024x2048."""

_base_ = 'mmseg::_base_/datasets/cityscapes_1024x1024.py'

train_dataloader = dict(batch_size=2)  # x 8 GPUs

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(2048 * i // 4, 1024 * i // 4), keep_ratio=True)
                for i in (2, 3, 4, 5, 6, 7)  # 0.5, 0.75 .. 1.75
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
