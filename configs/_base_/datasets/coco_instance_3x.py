"""COCO with the multi-scale augmentation of DETR, as in the paper's detectors."""

_base_ = 'mmdet::_base_/datasets/coco_instance.py'

multi_scale = dict(
    type='RandomChoiceResize', scales=[(s, 1333) for s in range(480, 801, 32)], keep_ratio=True
)
crop = [
    dict(type='RandomChoiceResize', scales=[(s, 1333) for s in (400, 500, 600)], keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[multi_scale], [*crop, multi_scale]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))  # 8 GPUs x 2 images
