"""Mask R-CNN with AFFNet-T and FPN on COCO, 1x (12 epochs)."""

_base_ = 'maskrcnn_affnet-et_coco.py'

model = dict(
    backbone=dict(arch='t', init_cfg=dict(checkpoint='mmffnet://affnet-t')),
    neck=dict(in_channels=[48, 96, 160, 192]),
)
