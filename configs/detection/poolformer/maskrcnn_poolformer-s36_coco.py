"""Mask R-CNN with PoolFormer-S36 and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_poolformer-s12_coco.py'

model = dict(backbone=dict(arch='s36', init_cfg=dict(checkpoint='mmffnet://poolformer-s36')))
