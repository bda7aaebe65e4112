"""Semantic FPN with PoolFormer-M36 on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_poolformer-s12_ade20k.py'

model = dict(
    backbone=dict(arch='m36', init_cfg=dict(checkpoint='mmffnet://poolformer-m36')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
