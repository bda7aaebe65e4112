"""PoolFormer-M48 on ImageNet, 224x224: the official recipe."""

_base_ = 'poolformer-m36_in1k.py'

model = dict(backbone=dict(arch='m48', drop_path_rate=0.4))
