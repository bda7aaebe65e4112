"""Semantic FPN with CAS-ViT-XS on ADE20K, crop 512x512, 40k iterations: the official recipe.

The weights must be fetched by hand: the error that names them says where they are.
"""

_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../../_base_/ade20k.py',
    '../../_base_/schedules/ade20k_40k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmffnet.CASViT',
        arch='xs',
        norm_eval=True,  # all batch norms keep their statistics
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://casvit-xs'),
    ),
    neck=dict(in_channels=[48, 56, 112, 220]),
    decode_head=dict(num_classes=150),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
