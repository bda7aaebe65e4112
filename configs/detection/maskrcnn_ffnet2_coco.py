"""Mask R-CNN with FFNet-2 and FPN on COCO, 1x (12 epochs).

The paper has no 1x recipe. The learning rate (for 8 GPUs x 2 images) is that of the 1x recipes of
PoolFormer and CAS-ViT; the weight and layer decay are those of ConvNeXt's Mask R-CNN in mmdet.
"""

_base_ = [
    '../_base_/models/mask-rcnn_ffnet2.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
]

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='mmffnet.LayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
