"""DeepLabV3 with AFFNet-ET: output stride 16, 256 channels, dilations 6, 12 and 18; 80k iterations.

The head is mmseg's, whose last convolution is 3x3 where the official one is 1x1: of the official
segmentors it takes the backbone (`prefix='encoder.'`).
"""

_base_ = [
    'mmseg::_base_/models/deeplabv3_r50-d8.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]

model = dict(
    # the official networks take RGB between 0 and 1
    data_preprocessor=dict(size=(512, 512), mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmffnet.AFFNet',
        arch='et',
        output_stride=16,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://affnet-et'),
    ),
    decode_head=dict(in_channels=144, channels=256, dilations=(1, 6, 12, 18), num_classes=150),
    auxiliary_head=None,
)
# The authors' settings are not public: this is the recipe of the Semantic FPNs of PoolFormer and
# CAS-ViT, with a longer schedule.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
