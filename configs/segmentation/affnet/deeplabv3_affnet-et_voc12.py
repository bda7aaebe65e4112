"""DeepLabV3 with AFFNet-ET on Pascal VOC 2012 (augmented), crop 512x512, 80k iterations.

The paper has this system (76.1 mIoU), but its configs are on a cloud drive and not in the
repository: the schedule is ours. The weights must be fetched by hand, see docs/mixers.md.
"""

_base_ = [
    'mmseg::_base_/datasets/pascal_voc12_aug.py',
    'mmseg::_base_/default_runtime.py',
    '../../_base_/models/deeplabv3_affnet-et.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(decode_head=dict(num_classes=21))
train_dataloader = dict(batch_size=2)  # x 8 GPUs
auto_scale_lr = dict(enable=False, base_batch_size=16)
