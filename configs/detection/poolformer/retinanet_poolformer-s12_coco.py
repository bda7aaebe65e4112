"""RetinaNet with PoolFormer-S12 and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.PoolFormer',
        arch='s12',
        out_indices=(1, 2, 3),  # an output that the neck leaves aside is an error in DDP
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://poolformer-s12'),
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
