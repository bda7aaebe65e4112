"""Semantic FPN with FFNet-4 on ADE20K, crop 512x512, 40k iterations (not of the paper)."""

_base_ = 'semfpn_ffnet1_ade20k.py'

model = dict(
    backbone=dict(
        arch='ffnet4',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmffnet://ffnet4-384'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
