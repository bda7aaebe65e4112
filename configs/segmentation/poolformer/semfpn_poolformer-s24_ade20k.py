"""Semantic FPN with PoolFormer-S24 on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_poolformer-s12_ade20k.py'

model = dict(
    backbone=dict(arch='s24', init_cfg=dict(checkpoint='mmffnet://poolformer-s24')),
)
