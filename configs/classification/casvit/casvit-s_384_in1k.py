"""CAS-ViT-S fine-tuned at 384x384 on ImageNet: as CAS-ViT-XS."""

_base_ = 'casvit-xs_384_in1k.py'

model = dict(backbone=dict(arch='s'), head=dict(in_channels=256))
load_from = 'mmffnet://casvit-s'  # to be fetched by hand
