"""FFNet-4 on ImageNet: the official recipe's defaults, as no command was published for it."""

_base_ = './ffnet3_in1k.py'

model = dict(
    backbone=dict(arch='ffnet4', drop_path_rate=0.4),
    head=dict(in_channels=1024),
)
