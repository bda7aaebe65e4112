"""RetinaNet with FFNet-3 and FPN on COCO, 1x (12 epochs)."""

_base_ = 'retinanet_ffnet2_coco.py'

model = dict(
    backbone=dict(
        arch='ffnet3',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmffnet://ffnet3-distilled'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
