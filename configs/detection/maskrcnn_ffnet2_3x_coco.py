"""Mask R-CNN with FFNet-2 and FPN on COCO, 3x (36 epochs), multi-scale.

ConvNeXt's 3x recipe for Mask R-CNN in mmdet, and the drop path of the paper's 3x detector.
"""

_base_ = [
    '../_base_/models/mask-rcnn_ffnet2.py',
    '../_base_/datasets/coco_instance_3x.py',
    '../_base_/schedules/coco_3x.py',
]

model = dict(backbone=dict(drop_path_rate=0.35))
optim_wrapper = dict(
    constructor='mmffnet.LayerDecayConstructor', paramwise_cfg=dict(layer_decay_rate=0.95)
)
