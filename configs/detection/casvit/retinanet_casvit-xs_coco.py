"""RetinaNet with CAS-ViT-XS and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../../_base_/models/casvit-xs.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../../_base_/schedules/coco_1x.py',
]

model = dict(
    # an output that the neck leaves aside is an error in DDP
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.casvit_xs),
    neck=dict(in_channels=[56, 112, 220], start_level=0),
)
train_dataloader = dict(batch_size=4)  # x 8 GPUs
auto_scale_lr = dict(base_batch_size=32)
