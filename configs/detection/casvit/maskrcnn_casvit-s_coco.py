"""Mask R-CNN with CAS-ViT-S and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_casvit-xs_coco.py'

model = dict(
    backbone=dict(
        arch='s',
        init_cfg=dict(checkpoint='mmffnet://casvit-s'),
    ),
    neck=dict(in_channels=[48, 64, 128, 256]),
)
