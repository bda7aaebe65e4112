"""FFNet-4 distilled on ImageNet: as FFNet-3. No official recipe; the drop path rate is our choice."""

_base_ = './ffnet3_distilled_in1k.py'

model = dict(
    backbone=dict(arch='ffnet4', drop_path_rate=0.25),
    head=dict(in_channels=1024),
)
