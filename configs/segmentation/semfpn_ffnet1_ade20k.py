"""Semantic FPN with FFNet-1 on ADE20K, crop 512x512, 40k iterations (not of the paper).

The recipe of PoolFormer's and CAS-ViT's Semantic FPN: AdamW, lr 2e-4, weight decay 1e-4, polynomial
decay of power 0.9, 32 images; the same as 80k iterations with 16 images at half the learning rate.
"""

_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/ade20k.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet1',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet1-distilled'),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
    decode_head=dict(num_classes=150),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000),
]

train_dataloader = dict(batch_size=4)  # x 8 GPUs
auto_scale_lr = dict(enable=False, base_batch_size=32)
