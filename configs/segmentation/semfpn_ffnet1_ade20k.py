"""Semantic FPN with FFNet-1 on ADE20K, crop 512x512, 40k iterations (not of the paper).

The recipe of PoolFormer's and CAS-ViT's Semantic FPN.
"""

_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_40k.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet1',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet1-distilled'),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
