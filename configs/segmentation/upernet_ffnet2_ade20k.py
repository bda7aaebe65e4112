"""UPerNet with FFNet-2 on ADE20K, crop 512x512, 160k iterations: the paper's recipe."""

_base_ = [
    '../_base_/models/upernet_ffnet2.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
