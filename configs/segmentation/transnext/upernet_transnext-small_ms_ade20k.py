"""UPerNet with TransNeXt-Small on ADE20K, tested with several scales (`--tta`): bias interpolated."""

_base_ = 'upernet_transnext-small_ade20k.py'

# whole pictures, most of which are larger than the crops of the training
model = dict(backbone=dict(img_size=800), test_cfg=dict(_delete_=True, mode='whole'))
