"""Detection on the synthetic shapes: a schedule that two CPU cores finish in minutes."""

_base_ = ['mmdet::_base_/default_runtime.py', './shapes.py']

optim_wrapper = dict(clip_grad=dict(max_norm=10))
default_hooks = dict(logger=_base_.logger, checkpoint=_base_.checkpoint)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
