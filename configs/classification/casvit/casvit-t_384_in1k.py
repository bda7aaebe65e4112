"""CAS-ViT-T fine-tuned at 384x384 on ImageNet: as CAS-ViT-XS."""

_base_ = 'casvit-xs_384_in1k.py'

model = dict(backbone=dict(arch='t'), head=dict(in_channels=512))
load_from = 'mmffnet://casvit-t'  # to be fetched by hand
