"""UPerNet with TransNeXt-Tiny on ADE20K, crop 512x512, 160k iterations: the official recipe."""

_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../../_base_/schedules/segmentation_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmffnet.TransNeXt',
        arch='tiny',
        bias='interpolate',
        img_size=512,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://transnext-tiny'),
    ),
    decode_head=dict(in_channels=[72, 144, 288, 576], num_classes=150),
    auxiliary_head=dict(in_channels=288, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
# Norms of the backbone and what its no_weight_decay() names are not decayed, all else is.
heads = dict(decay_mult=1.0)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        bias_decay_mult=1.0,
        flat_decay_mult=1.0,
        custom_keys=dict(decode_head=heads, auxiliary_head=heads),
    ),
)
train_dataloader = dict(batch_size=2)  # x 8 GPUs

# With several scales (`--tta`): multiples of 512 pixels, where mmseg's are multiples of each picture.
load, augment = _base_.tta_pipeline
ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
resize = [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in ratios]
tta_pipeline = [load, dict(augment, transforms=[resize, *augment.transforms[1:]])]
