"""Semantic FPN for ADE20K in crops of 512x512; the backbone is to be replaced."""

_base_ = 'mmseg::_base_/models/fpn_r50.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)), pretrained=None, decode_head=dict(num_classes=150)
)
