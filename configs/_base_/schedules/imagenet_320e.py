"""ImageNet for 300 + 20 epochs, on 8 GPUs with 128 images each: the official recipe of FFNet.

The official runs are in mixed precision: `--amp`.
"""

_base_ = './imagenet_300e.py'

# Layer scales have weight decay.
optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True, mode='official', decay_rate=1.0, num_layers=12)
)
train_cfg = dict(max_epochs=320)
custom_hooks = [
    dict(type='mmffnet.RawAndEMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(type='mmffnet.AverageBuffersHook'),
]
randomness = dict(seed=42, diff_rank_seed=True)
