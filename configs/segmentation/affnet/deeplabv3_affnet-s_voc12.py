"""DeepLabV3 with AFFNet on Pascal VOC 2012 (augmented); the paper has 80.5 mIoU."""

_base_ = 'deeplabv3_affnet-et_voc12.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='mmffnet://affnet-s')),
    decode_head=dict(in_channels=320),
)
