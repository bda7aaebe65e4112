"""Mask R-CNN with FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/shapes_coco.py',
    '../_base_/schedules/shapes_det.py',
]

# The pictures have 160 pixels, COCO's 800 to 1333: levels and proposals are made for that.
model = dict(
    backbone=dict(_delete_=True, type='FFNet', arch='nano', drop_path_rate=0.0),
    neck=dict(
        in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=32,
        anchor_generator=dict(scales=[5], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=32, num_classes=5),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100), rcnn=dict(sampler=dict(num=48))
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=30)),
)
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
