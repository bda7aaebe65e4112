"""Semantic FPN with CAS-ViT-S on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_casvit-xs_ade20k.py'

model = dict(
    backbone=dict(
        arch='s',
        init_cfg=dict(checkpoint='mmffnet://casvit-s'),
    ),
    neck=dict(in_channels=[48, 64, 128, 256]),
)
