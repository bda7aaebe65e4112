"""Semantic FPN with FFNet nano on ADE20K: small enough to train on a CPU (not of the paper)."""

_base_ = 'semfpn_ffnet1_ade20k.py'

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
