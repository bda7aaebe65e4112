"""TransNeXt-Base fine-tuned at 384x384 on ImageNet: the official recipe."""

_base_ = 'transnext-small_384_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.8), head=dict(in_channels=768))
load_from = 'mmffnet://transnext-base'
