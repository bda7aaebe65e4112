"""UPerNet with FFNet-4 on ADE20K, crop 512x512, 160k iterations: the paper's recipe."""

_base_ = 'upernet_ffnet3_ade20k.py'

model = dict(
    backbone=dict(arch='ffnet4', init_cfg=dict(checkpoint='mmffnet://ffnet4-384')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
