"""PoolFormer-S12 on ImageNet, 224x224: the official recipe."""

_base_ = [
    '../../_base_/models/classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs128_poolformer_small_224.py',
    '../../_base_/schedules/imagenet_300e.py',
]

model = dict(
    backbone=dict(type='mmffnet.PoolFormer', arch='s12', out_indices=3, drop_path_rate=0.1),
    head=dict(in_channels=512),
)
train_dataloader = dict(drop_last=True)
train_cfg = dict(max_epochs=310)  # the last 10 at the lowest learning rate
