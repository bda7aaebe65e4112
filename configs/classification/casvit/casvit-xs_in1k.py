"""CAS-ViT-XS on ImageNet, 224x224: the published command, with a size of 160 to 320 for each batch.

The official weights must be fetched by hand; they have two heads, whose mean is taken while they are
loaded.
"""

_base_ = [
    '../../_base_/models/classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../../_base_/schedules/imagenet_300e.py',
]

model = dict(
    backbone=dict(type='mmffnet.CASViT', arch='xs', out_indices=3, drop_path_rate=0.1),
    head=dict(in_channels=220),
    train_cfg=None,  # neither mixup nor CutMix
)

load, crop, *augment = [s for s in _base_.train_pipeline if s['type'] != 'RandomErasing']
train_pipeline = [load, dict(type='mmffnet.OfBatchSize', transform=crop), *augment]
train_dataloader = dict(
    batch_size=128,
    batch_sampler=dict(type='mmffnet.MultiSizeBatchSampler', size=224),
    dataset=dict(pipeline=train_pipeline),
)

optim_wrapper = dict(optimizer=dict(lr=6e-3), accumulative_counts=2)  # 8 GPUs x 128 x 2
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=20,
        end=300,
        T_max=280,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(type='mmffnet.RawAndEMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL')
]
auto_scale_lr = dict(base_batch_size=2048)
