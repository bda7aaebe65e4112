"""TransNeXt-Tiny on ImageNet, 224x224: the official recipe."""

_base_ = 'transnext-micro_in1k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.25), head=dict(in_channels=576))
