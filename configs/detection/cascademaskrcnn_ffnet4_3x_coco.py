"""Cascade Mask R-CNN with FFNet-4 on COCO, 3x: the paper's recipe."""

_base_ = 'cascademaskrcnn_ffnet2_3x_coco.py'

model = dict(
    backbone=dict(
        arch='ffnet4',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='mmffnet://ffnet4-384'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)

# The same average as mmdet 2's hook of that name made, of the batch norms' statistics too.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=1e-4,
        gamma=2000,
        update_buffers=True,
        priority=49,
    )
]
