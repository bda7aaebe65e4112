"""Cascade Mask R-CNN with FFNet-3 on COCO, 3x: the paper's recipe."""

_base_ = 'cascademaskrcnn_ffnet2_3x_coco.py'

model = dict(
    backbone=dict(
        arch='ffnet3',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='mmffnet://ffnet3-distilled'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
