"""RetinaNet with FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/shapes_coco.py',
    '../_base_/schedules/shapes_det.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='nano',
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet-nano-seg'),
    ),
    neck=dict(
        in_channels=[64, 128, 256],
        out_channels=64,
        start_level=0,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        # from 24 to 152 pixels
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
    test_cfg=dict(max_per_img=30),
)
