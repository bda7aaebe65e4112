"""PoolFormer-S36 on ImageNet, 224x224: the official recipe."""

_base_ = 'poolformer-s12_in1k.py'

model = dict(backbone=dict(arch='s36', drop_path_rate=0.2))
