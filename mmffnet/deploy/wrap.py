"""A model of mmdet, mmseg or mmpretrain as a plain module: pictures in, results out.

What these packages do around the network in Python, from normalising to painting labels, becomes
part of the graph here, in operations that every format knows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import Plain, exportable


class Features(Plain):
    """The maps of a backbone."""

    task = 'features'

    def __init__(self, model: Any):
        super().__init__(model)
        self.backbone = exportable(getattr(model, 'backbone', model))
        self.outputs = [f'stage{i}' for i in self.backbone.out_indices]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(self.prepare(images)))


class Classifier(Plain):
    """The probabilities of an mmpretrain classifier."""

    task = 'classification'

    def __init__(self, model: Any):
        super().__init__(model)
        self.backbone, self.neck, self.head = (
            exportable(getattr(model, name, None)) for name in ('backbone', 'neck', 'head')
        )
        self.outputs = ['scores']

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.neck(self.backbone(self.prepare(images)))
        return (self.head(x).softmax(dim=1),)


class Segmentor(Plain):
    """The label of every pixel, from an mmseg ``EncoderDecoder`` on the picture as a whole."""

    task = 'segmentation'

    def __init__(self, model: Any):
        super().__init__(model)
        self.backbone, self.neck, self.head = (
            exportable(getattr(model, name, None)) for name in ('backbone', 'neck', 'decode_head')
        )
        self.align_corners = model.align_corners
        self.outputs = ['labels']

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.prepare(images)
        logits = self.head(self.neck(self.backbone(x)))
        logits = F.interpolate(
            logits, x.shape[2:], mode='bilinear', align_corners=self.align_corners
        )
        if self.head.out_channels == 1:
            labels = (logits.sigmoid() > self.head.threshold).long().squeeze(1)
        else:
            labels = logits.argmax(dim=1)
        if self.divisor > 1:
            # torch.export makes a condition for sizes of a slice, CoreML refuses one of everything
            for dim in (1, 2):
                inside = torch.arange(images.shape[dim + 1], device=labels.device)
                labels = labels.index_select(dim, inside)
        return (labels,)


def wrap(model: Any, backbone: bool = False) -> Plain:
    """Makes the module that is exported of what a config builds, or of its backbone alone."""
    if backbone or not hasattr(model, 'backbone'):
        if not hasattr(getattr(model, 'backbone', model), 'out_indices'):
            raise ValueError(f'{type(model).__name__} has no backbone with out_indices to export')
        return Features(model).eval()
    if hasattr(model, 'decode_head'):
        return Segmentor(model).eval()
    if hasattr(model, 'roi_head') or hasattr(model, 'bbox_head'):
        from .detection import wrap_detector

        return wrap_detector(model).eval()
    if getattr(model, 'head', None) is not None:
        return Classifier(model).eval()
    raise ValueError(
        f'{type(model).__name__} cannot be exported: only classifiers, segmentors, RetinaNet and '
        f'Mask R-CNN can, and the backbone of any model'
    )
