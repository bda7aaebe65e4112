"""160k iterations with AdamW, as all segmentors of the paper."""

_base_ = ['mmseg::_base_/schedules/schedule_160k.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),  # vectors: norms and biases
)
# the decay begins at once, the warm-up is a factor to it
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000),
]
train_cfg = dict(val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000, max_keep_ckpts=3, save_best='mIoU'))

# 8 GPUs x 2 images
auto_scale_lr = dict(enable=False, base_batch_size=16)
