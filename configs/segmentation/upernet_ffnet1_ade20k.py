"""UPerNet with FFNet-1 on ADE20K: FFNet-2's recipe with less drop path (not of the paper)."""

_base_ = 'upernet_ffnet2_ade20k.py'

model = dict(
    backbone=dict(
        arch='ffnet1',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmffnet://ffnet1-distilled'),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
