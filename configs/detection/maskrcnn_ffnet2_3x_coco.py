"""Mask R-CNN with FFNet-2 and FPN on COCO, 3x (36 epochs), multi-scale."""

_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/coco_instance_3x.py']
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.35,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[88, 176, 352, 704]),
)

# ConvNeXt's 3x recipe for Mask R-CNN in mmdet, and the drop path of the paper's 3x detector.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
