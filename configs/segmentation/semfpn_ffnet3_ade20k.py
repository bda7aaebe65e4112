"""Semantic FPN with FFNet-3 on ADE20K, crop 512x512, 40k iterations (not of the paper)."""

_base_ = 'semfpn_ffnet1_ade20k.py'

model = dict(
    backbone=dict(
        arch='ffnet3',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmffnet://ffnet3-distilled'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
