"""Mask R-CNN with FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/shapes_coco.py',
    '../_base_/schedules/shapes_det.py',
]

masks = dict(num_classes=5, loss_mask=dict(loss_weight=2.0))
# The pictures have 160 pixels, COCO's 800 to 1333: levels and proposals are made for that.
model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='nano',
        drop_path_rate=0.0,
        frozen_stages=2,  # the stem and two stages
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet-nano-seg'),
    ),
    neck=dict(
        in_channels=[32, 64, 128, 256], out_channels=48, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=48,
        feat_channels=32,
        anchor_generator=dict(scales=[5], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, finest_scale=14),
        bbox_head=dict(in_channels=48, fc_out_channels=256, num_classes=5, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=48),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=32, **masks),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=30)),
)
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
