"""Mask R-CNN with CAS-ViT-M and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_casvit-xs_coco.py'

model = dict(
    backbone=dict(
        arch='m',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://casvit-m'),
    ),
    neck=dict(in_channels=[64, 96, 192, 384]),
)
