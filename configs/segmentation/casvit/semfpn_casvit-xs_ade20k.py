"""Semantic FPN with CAS-ViT-XS on ADE20K, crop 512x512, 40k iterations: the official recipe.

The weights must be fetched by hand: the error that names them says where they are.
"""

_base_ = [
    '../../_base_/models/semantic-fpn.py',
    '../../_base_/datasets/ade20k.py',
    '../../_base_/schedules/ade20k_40k.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmffnet.CASViT',
        arch='xs',
        norm_eval=True,  # all batch norms keep their statistics
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://casvit-xs'),
    ),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
