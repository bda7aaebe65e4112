"""AFFNet-T on ImageNet."""

_base_ = 'affnet-et_in1k.py'

model = dict(
    backbone=dict(arch='t'),
    neck=dict(in_channels=192, out_channels=768),
    head=dict(in_channels=768),
)
