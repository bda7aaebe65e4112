"""What the trainings on the synthetic shapes share: the rate falls to 0 at whatever max_iters is."""

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),  # the same for all layers
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=60),
    dict(type='CosineAnnealingLR', by_epoch=False),
]
custom_hooks = [dict(type='mmffnet.ChannelsLastHook')]  # a fifth faster on CPUs
logger = dict(type='LoggerHook', interval=10, log_metric_by_epoch=False)
checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2)
