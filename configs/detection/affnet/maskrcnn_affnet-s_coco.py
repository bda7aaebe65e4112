"""Mask R-CNN with AFFNet and FPN on COCO, 1x (12 epochs)."""

_base_ = 'maskrcnn_affnet-et_coco.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='mmffnet://affnet-s')),
    neck=dict(in_channels=[64, 128, 256, 320]),
)
