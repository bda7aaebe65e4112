"""DeepLabV3 with AFFNet on ADE20K; the paper has 38.4 mIoU."""

_base_ = 'deeplabv3_affnet-et_ade20k.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='mmffnet://affnet-s')),
    decode_head=dict(in_channels=320),
)
