"""Semantic FPN with PoolFormer-S12 on ADE20K, crop 512x512, 40k iterations: the official recipe."""

_base_ = [
    '../../_base_/models/semantic-fpn.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_40k.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.PoolFormer',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://poolformer-s12'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
