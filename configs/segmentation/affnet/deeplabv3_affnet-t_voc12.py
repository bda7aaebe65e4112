"""DeepLabV3 with AFFNet-T on Pascal VOC 2012 (augmented); the paper has 77.8 mIoU."""

_base_ = 'deeplabv3_affnet-et_voc12.py'

model = dict(
    backbone=dict(arch='t', init_cfg=dict(checkpoint='mmffnet://affnet-t')),
    decode_head=dict(in_channels=192),
)
