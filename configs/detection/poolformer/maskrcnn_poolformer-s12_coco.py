"""Mask R-CNN with PoolFormer-S12 and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://poolformer-s12'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
