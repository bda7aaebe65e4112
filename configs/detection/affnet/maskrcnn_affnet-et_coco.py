"""Mask R-CNN with AFFNet-ET and FPN on COCO, 1x (12 epochs).

The official repository has code for such a detector, but its config is not public and the README has
no result: the recipe is that of PoolFormer. The weights must be fetched by hand, see docs/mixers.md.
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    # the official networks take RGB between 0 and 1
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    backbone=dict(
        _delete_=True,
        type='mmffnet.AFFNet',
        arch='et',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://affnet-et'),
    ),
    neck=dict(in_channels=[48, 64, 104, 144]),
)
