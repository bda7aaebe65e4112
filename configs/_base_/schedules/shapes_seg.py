"""Segmentation on the synthetic shapes: a schedule that two CPU cores finish in minutes."""

_base_ = ['mmseg::_base_/default_runtime.py', './shapes.py']

train_cfg = dict(type='IterBasedTrainLoop', max_iters=2250, val_interval=450)
optim_wrapper = dict(optimizer=dict(lr=8e-3), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=2250, by_epoch=False),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=450, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=16)
