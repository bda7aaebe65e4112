"""Semantic FPN with CAS-ViT-M on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_casvit-xs_ade20k.py'

model = dict(
    backbone=dict(
        arch='m',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://casvit-m'),
    ),
    neck=dict(in_channels=[64, 96, 192, 384]),
)
