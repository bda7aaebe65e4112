"""Semantic FPN with FFNet nano on the synthetic shapes: trains on a CPU in minutes."""

_base_ = ['mmseg::_base_/models/fpn_r50.py', '../_base_/shapes_ade20k.py']

norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    pretrained=None,
    # Stride 4 would take half of the time, which is better spent on more iterations.
    backbone=dict(
        _delete_=True, type='FFNet', arch='nano', out_indices=(1, 2, 3), drop_path_rate=0.0
    ),
    neck=dict(in_channels=[64, 128, 256], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[64, 64, 64],
        in_index=[0, 1, 2],
        feature_strides=[8, 16, 32],
        channels=64,
        num_classes=6,
        norm_cfg=norm_cfg,
    ),
)
