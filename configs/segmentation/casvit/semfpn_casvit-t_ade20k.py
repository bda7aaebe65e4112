"""Semantic FPN with CAS-ViT-T on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_casvit-xs_ade20k.py'

model = dict(
    backbone=dict(
        arch='t',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://casvit-t'),
    ),
    neck=dict(in_channels=[96, 128, 256, 512]),
)
