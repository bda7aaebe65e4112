"""PoolFormer-S24 on ImageNet, 224x224: the official recipe."""

_base_ = 'poolformer-s12_in1k.py'

model = dict(backbone=dict(arch='s24', drop_path_rate=0.1))
