"""Segmentation on the synthetic shapes: a schedule that two CPU cores finish in minutes."""

_base_ = ['mmseg::_base_/default_runtime.py', './shapes.py']

optim_wrapper = dict(optimizer=dict(lr=8e-3), clip_grad=dict(max_norm=10))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=_base_.logger,
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=_base_.checkpoint,
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=16)
