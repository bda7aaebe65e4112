"""Mask R-CNN with CAS-ViT-XS and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../../_base_/models/casvit-xs.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.casvit_xs),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
auto_scale_lr = dict(base_batch_size=32)
