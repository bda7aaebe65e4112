"""Mask R-CNN with CAS-ViT-XS and FPN on COCO, 1x (12 epochs): the official recipe.

The weights must be fetched by hand: the error that names them says where they are.
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.CASViT',
        arch='xs',
        norm_eval=True,  # all batch norms keep their statistics
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://casvit-xs'),
    ),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
auto_scale_lr = dict(base_batch_size=32)
