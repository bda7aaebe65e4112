"""Mask R-CNN with TransNeXt-Tiny and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.TransNeXt',
        arch='tiny',
        bias='interpolate',
        img_size=800,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://transnext-tiny'),
    ),
    neck=dict(in_channels=[72, 144, 288, 576]),
)
# Norms and what the backbone's no_weight_decay() names are not decayed, other vectors are.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0, bias_decay_mult=1.0, flat_decay_mult=1.0),
)
