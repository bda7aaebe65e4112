"""Semantic FPN with CAS-ViT-XS on ADE20K, crop 512x512, 40k iterations: the official recipe."""

_base_ = [
    '../../_base_/models/semantic-fpn.py',
    '../../_base_/models/casvit-xs.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_40k.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.casvit_xs),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
