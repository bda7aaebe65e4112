"""TransNeXt-Micro with aggregated attention in all stages on ImageNet, 256x256: the official recipe."""

_base_ = [
    '../../_base_/models/classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py',
    '../../_base_/schedules/imagenet_300e.py',
]

model = dict(
    backbone=dict(type='mmffnet.TransNeXt', arch='micro-AAAA', out_indices=3, drop_path_rate=0.15),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=128, drop_last=True, sampler=dict(type='RepeatAugSampler'))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
