"""RetinaNet with PoolFormer-S24 and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'retinanet_poolformer-s12_coco.py'

model = dict(backbone=dict(arch='s24', init_cfg=dict(checkpoint='mmffnet://poolformer-s24')))
