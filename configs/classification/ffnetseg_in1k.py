"""FFNetSeg on ImageNet, with the head of its official pre-training.

No recipe for it was published: the rest is that of FFNet.
"""

_base_ = [
    '../_base_/models/ffnet_classifier.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/imagenet_320e.py',
]

model = dict(
    backbone=dict(type='FFNetSeg', out_norm_cfg=None, drop_path_rate=0.2),
    neck=dict(_delete_=True, type='mmffnet.ConvPoolNeck', in_channels=768, out_channels=1024),
    head=dict(
        type='StackedLinearClsHead',
        in_channels=1024,
        mid_channels=[1280],
        norm_cfg=dict(type='LN', eps=1e-6),
        act_cfg=dict(type='HSwish'),
    ),
)
