"""40k iterations on 8 GPUs x 4 crops with AdamW, as Semantic FPN of PoolFormer is trained.

The same as 80k iterations with 16 crops at half the learning rate.
"""

_base_ = ['mmseg::_base_/schedules/schedule_40k.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
