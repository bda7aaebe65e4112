"""FFNetSeg with FFNetHead, the system-level segmentor of the paper."""

_base_ = 'mmseg::_base_/models/segformer_mit-b0.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNetSeg',
        norm_cfg=norm_cfg,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnetseg'),
    ),
    decode_head=dict(
        _delete_=True,
        type='FFNetHead',
        in_channels=[192, 384, 768],
        head_depth=3,
        expansion_ratio=4,
        drop_path_rate=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
    ),
)
