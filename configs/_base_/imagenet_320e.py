"""ImageNet at 256 x 256 for 300 + 20 epochs, on 8 GPUs with 128 images each: the official recipe.

The official runs are in mixed precision: `--amp`.
"""

_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

# The training pipeline is the inherited one. The official colour jitter of 0.4 is not missing: timm
# leaves it out where there is RandAugment.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=284, backend='pillow', interpolation='bicubic'),  # 256 / 0.9
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, drop_last=True)
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The optimizer is the inherited one, AdamW with 1e-3 and 0.05. Biases and tensors of one dimension
# have no weight decay, so layer scales have it; all layers learn at the same rate.
optim_wrapper = dict(
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(_delete_=True, mode='official', decay_rate=1.0, num_layers=12),
)
train_cfg = dict(max_epochs=320)
param_scheduler = [
    dict(
        type='mmffnet.WarmupCosineLR',
        warmup_epochs=5,
        start_factor=1e-3,
        cosine_epochs=300,
        eta_min_ratio=0.01,
    )
]

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
custom_hooks = [
    dict(type='mmffnet.RawAndEMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(type='mmffnet.AverageBuffersHook'),
]
randomness = dict(seed=42, diff_rank_seed=True)
