"""CAS-ViT-M fine-tuned at 384x384 on ImageNet: as CAS-ViT-XS."""

_base_ = 'casvit-xs_384_in1k.py'

model = dict(backbone=dict(arch='m'), head=dict(in_channels=384))
load_from = 'mmffnet://casvit-m'  # to be fetched by hand
