"""ADE20K in crops of 512x512; test images 512 high with sides that are multiples of 32."""

_base_ = 'mmseg::_base_/datasets/ade20k.py'

to_multiple = dict(type='ResizeToMultiple', size_divisor=32)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    to_multiple,
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(2048 * i // 4, 512 * i // 4), keep_ratio=True)
                for i in (2, 3, 4, 5, 6, 7)  # 0.5, 0.75 .. 1.75
            ],
            [to_multiple],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=2)  # x 8 GPUs
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
