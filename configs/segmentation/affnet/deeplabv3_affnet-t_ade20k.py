"""DeepLabV3 with AFFNet-T on ADE20K; the paper has 36.9 mIoU."""

_base_ = 'deeplabv3_affnet-et_ade20k.py'

model = dict(
    backbone=dict(arch='t', init_cfg=dict(checkpoint='mmffnet://affnet-t')),
    decode_head=dict(in_channels=192),
)
