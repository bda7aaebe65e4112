"""Mask R-CNN with TransNeXt-Base and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_transnext-tiny_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint='mmffnet://transnext-base'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
