"""Mask R-CNN with TransNeXt-Small and FPN on COCO, 1x (12 epochs): the official recipe."""

_base_ = 'maskrcnn_transnext-tiny_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint='mmffnet://transnext-small'),
    ),
)
