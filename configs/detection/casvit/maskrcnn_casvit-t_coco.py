"""Mask R-CNN with CAS-ViT-T and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_casvit-xs_coco.py'

model = dict(
    backbone=dict(
        arch='t',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://casvit-t'),
    ),
    neck=dict(in_channels=[96, 128, 256, 512]),
)
