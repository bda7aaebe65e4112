"""Semantic FPN with PoolFormer-S36 on ADE20K, 40k iterations: the official recipe."""

_base_ = 'semfpn_poolformer-s12_ade20k.py'

model = dict(
    backbone=dict(arch='s36', init_cfg=dict(checkpoint='mmffnet://poolformer-s36')),
)
