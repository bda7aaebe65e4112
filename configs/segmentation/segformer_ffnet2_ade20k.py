"""SegFormer's MLP head on FFNet-2, ADE20K, crop 512x512, 160k iterations (not of the paper).

SegFormer's optimizer: lr 6e-5, ten times that in the head, weight decay 0.01.
"""

_base_ = [
    'mmseg::_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    decode_head=dict(in_channels=[88, 176, 352, 704], num_classes=150),
)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
