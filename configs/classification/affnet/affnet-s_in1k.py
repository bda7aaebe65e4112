"""AFFNet on ImageNet."""

_base_ = 'affnet-et_in1k.py'

model = dict(
    backbone=dict(arch='s'),
    neck=dict(in_channels=320, out_channels=960),
    head=dict(in_channels=960),
)
