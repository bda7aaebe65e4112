"""UPerNet with FFNet-2."""

_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    decode_head=dict(in_channels=[88, 176, 352, 704]),
    auxiliary_head=dict(in_channels=352),
)
