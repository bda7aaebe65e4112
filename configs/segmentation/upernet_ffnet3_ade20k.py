"""UPerNet with FFNet-3 on ADE20K, crop 512x512, 160k iterations: the paper's recipe."""

_base_ = 'upernet_ffnet2_ade20k.py'

model = dict(
    backbone=dict(
        arch='ffnet3',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmffnet://ffnet3-distilled'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(mode='official', layer_decay_rate=0.9, num_layers=12),
)
