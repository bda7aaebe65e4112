"""CAS-ViT-S on ImageNet, 224x224: as CAS-ViT-XS."""

_base_ = 'casvit-xs_in1k.py'

model = dict(backbone=dict(arch='s'), head=dict(in_channels=256))
