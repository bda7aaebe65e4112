"""FFNetSeg with FFNetHead on Cityscapes, crop 1024x1024, 160k iterations: the paper's recipe.

The official config names a backbone and a base file that do not exist. The backbone's parameters and
FLOPs are those of FFNetSeg; the data are as in the base file of that name in the SegNeXt repository.
"""

_base_ = [
    '../_base_/models/ffnetseg.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/segmentation_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(drop_path_rate=0.35),
    decode_head=dict(head_depth=5, expansion_ratio=1, drop_path_rate=0.0, num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)),
)

# Norms and biases are decayed too, as in the official runs.
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.02),
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
