"""UPerNet with TransNeXt-Small on ADE20K, 160k iterations: the official recipe."""

_base_ = 'upernet_transnext-tiny_ade20k.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='mmffnet://transnext-small'),
    ),
)
