"""UPerNet with FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    '../_base_/datasets/shapes_ade20k.py',
    '../_base_/schedules/shapes_seg.py',
]

weights = dict(type='Pretrained', checkpoint='mmffnet://ffnet-nano-seg')
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(96, 96), test_cfg=dict(size_divisor=32)),
    pretrained=None,
    backbone=dict(_delete_=True, type='FFNet', arch='nano', drop_path_rate=0.0, init_cfg=weights),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=6, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=6, norm_cfg=norm_cfg),
)
