"""Semantic FPN with FFNet-2 on ADE20K, crop 512x512, 40k iterations (not of the paper)."""

_base_ = 'semfpn_ffnet1_ade20k.py'

model = dict(
    backbone=dict(
        arch='ffnet2',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[88, 176, 352, 704]),
)
