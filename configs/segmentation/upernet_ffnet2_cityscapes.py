"""UPerNet with FFNet-2 on Cityscapes, crop 1024x1024 (not of the paper; its ADE20K recipe)."""

_base_ = [
    '../_base_/models/upernet_ffnet2.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/segmentation_160k.py',
]

model = dict(data_preprocessor=dict(size=(1024, 1024)))  # 19 classes in mmseg's base
