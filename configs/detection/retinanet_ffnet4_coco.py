"""RetinaNet with FFNet-4 and FPN on COCO, 1x (12 epochs)."""

_base_ = 'retinanet_ffnet2_coco.py'

model = dict(
    backbone=dict(
        arch='ffnet4',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmffnet://ffnet4-384'),
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
