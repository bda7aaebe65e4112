"""RetinaNet with FFNet-2 and FPN on COCO, 1x (12 epochs)."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        out_indices=(1, 2, 3),  # an output that the neck leaves aside is an error in DDP
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[176, 352, 704], start_level=0),
)

# As in maskrcnn_ffnet2_coco.py, with the lower learning rate of PoolFormer's RetinaNet.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
