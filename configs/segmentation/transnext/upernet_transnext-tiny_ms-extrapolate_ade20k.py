"""UPerNet with TransNeXt-Tiny on ADE20K, tested with several scales (`--tta`): bias extrapolated."""

_base_ = 'upernet_transnext-tiny_ade20k.py'

model = dict(backbone=dict(bias='extrapolate'), test_cfg=dict(_delete_=True, mode='whole'))
