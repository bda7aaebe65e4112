"""UPerNet with FFNet-2 on ADE20K, crop 512x512, 160k iterations: the paper's recipe."""

_base_ = [
    '../_base_/upernet_ffnet2.py',
    '../_base_/ade20k.py',
    '../_base_/segmentation_160k.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
