"""300 epochs of ImageNet on 8 GPUs with 128 images each: AdamW, 1e-3, weight decay 0.05."""

_base_ = [
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

# Norms, biases, vectors and what the backbone's no_weight_decay() names are not decayed.
optim_wrapper = dict(
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
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
