"""Mask R-CNN with FFNet-2 and FPN on COCO, 1x (12 epochs)."""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[88, 176, 352, 704]),
)

# The paper has no 1x recipe. The learning rate (for 8 GPUs x 2 images) is that of the 1x recipes of
# PoolFormer and CAS-ViT; the weight and layer decay are those of ConvNeXt's Mask R-CNN in mmdet.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
