"""CAS-ViT-M on ImageNet, 224x224: as CAS-ViT-XS."""

_base_ = 'casvit-xs_in1k.py'

model = dict(backbone=dict(arch='m'), head=dict(in_channels=384))
