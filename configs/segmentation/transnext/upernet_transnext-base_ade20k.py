"""UPerNet with TransNeXt-Base on ADE20K, 160k iterations: the official recipe."""

_base_ = 'upernet_transnext-tiny_ade20k.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint='mmffnet://transnext-base'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
