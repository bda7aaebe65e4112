"""AFFNet-ET on ImageNet, 256x256.

The official classifier with its weights (to be fetched by hand, see docs/mixers.md). The training
recipe of the authors is not public: this is that of Swin in mmpretrain.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

# the official networks take RGB between 0 and 1
data_preprocessor = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmffnet.AFFNet', arch='et', out_indices=3),
    neck=dict(
        type='mmffnet.ConvPoolNeck',
        in_channels=144,
        out_channels=576,
        act_cfg=dict(type='SiLU'),
        init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=576,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=288, backend='pillow', interpolation='bilinear'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128)  # x 8 GPUs
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
