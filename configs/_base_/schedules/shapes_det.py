"""Detection on the synthetic shapes: a schedule that two CPU cores finish in minutes."""

_base_ = ['mmdet::_base_/default_runtime.py', './shapes.py']

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=2)
optim_wrapper = dict(clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=10, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
