"""Semantic FPN with PoolFormer-S12 on ADE20K, crop 512x512, 40k iterations: the official recipe."""

_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../../_base_/ade20k.py',
    '../../_base_/schedules/ade20k_40k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmffnet.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://poolformer-s12'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
