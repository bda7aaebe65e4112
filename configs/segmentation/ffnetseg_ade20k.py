"""FFNetSeg with FFNetHead on ADE20K, crop 512x512, 160k iterations: the paper's recipe."""

_base_ = [
    '../_base_/models/ffnetseg.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/segmentation_160k.py',
]

model = dict(data_preprocessor=dict(size=(512, 512)))

# Norms and biases are decayed too, as in the official runs.
optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
