"""Cascade Mask R-CNN with FFNet-2 on COCO, 3x: the paper's recipe."""

_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_3x.py',
    '../_base_/schedules/coco_3x.py',
]

sync_bn = dict(type='SyncBN', requires_grad=True)
box_head = dict(
    type='ConvFCBBoxHead',
    num_shared_convs=4,
    num_shared_fcs=1,
    num_classes=80,
    norm_cfg=sync_bn,
    reg_decoded_bbox=True,
    loss_cls=dict(type='CrossEntropyLoss'),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
target_stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
coders = [dict(type='DeltaXYWHBBoxCoder', target_stds=stds) for stds in target_stds]
model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        norm_cfg=sync_bn,
        drop_path_rate=0.35,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[88, 176, 352, 704]),
    roi_head=dict(bbox_head=[dict(**box_head, bbox_coder=coder) for coder in coders]),
)

optim_wrapper = dict(
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(mode='official', decay_rate=0.8, num_layers=12),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=5, save_last=True, save_best='auto'))
