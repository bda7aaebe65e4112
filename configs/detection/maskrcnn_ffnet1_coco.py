"""Mask R-CNN with FFNet-1 and FPN on COCO, 1x (12 epochs)."""

_base_ = 'maskrcnn_ffnet2_coco.py'

model = dict(
    backbone=dict(
        arch='ffnet1',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://ffnet1-distilled'),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
