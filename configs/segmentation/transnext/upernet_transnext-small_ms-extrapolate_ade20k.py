"""UPerNet with TransNeXt-Small on ADE20K, tested with several scales (`--tta`): bias extrapolated."""

_base_ = 'upernet_transnext-small_ade20k.py'

model = dict(backbone=dict(bias='extrapolate'), test_cfg=dict(_delete_=True, mode='whole'))
