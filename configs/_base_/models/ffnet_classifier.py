"""A classifier on ImageNet's 1000 classes: FFNet, its final norm, average pooling, one linear layer."""

_base_ = './classifier.py'

model = dict(backbone=dict(type='FFNet', out_indices=3, out_norm_cfg=dict(type='BN')))
