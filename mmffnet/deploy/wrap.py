"""A model of mmdet, mmseg or mmpretrain as a plain module: pictures in, results out.

What these packages do around the network in Python, from normalising to painting labels, becomes
part of the graph here, in operations that every format knows.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import reparameterize


class Plain(nn.Module):
    """Base of the modules that are exported; re-parameterised, in eval mode, on the CPU.

    Takes pictures as (N, 3, H, W) float32, R, G, B, 0 to 255.

    Args:
        model (nn.Module): A model with a ``data_preprocessor``, or a backbone, which then gets
            pictures as they are. Left as it is.
    """

    #: One of ``runtimes.TASKS``
    task: str
    #: Detections below it are not given
    score_threshold: float | None = None
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any):
        super().__init__()
        self.outputs: list[str] = []
        processor = getattr(model, 'data_preprocessor', None)
        self.swap = processor is not None and not _wants_rgb(processor)
        self.divisor = _size_divisor(processor)
        self.pad_value = float(getattr(processor, 'pad_value', getattr(processor, 'pad_val', 0)))
        normalized = getattr(processor, '_enable_normalize', False)
        for name, default in (('mean', 0.0), ('std', 1.0)):
            value = getattr(processor, name) if normalized else torch.full((3, 1, 1), default)
            value = value.detach().cpu().clone().float().reshape(3, 1, 1)
            self.register_buffer(name, value)
        self.normalized = normalized

    def prepare(self, images: Tensor) -> Tensor:
        """What the model's data preprocessor does."""
        x = images.flip(1) if self.swap else images
        if self.normalized:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[2:]
            x = F.pad(
                x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value
            )
        return x


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
    """Makes the module that is exported.

    Args:
        model (nn.Module): What a config builds: a detector, segmentor, classifier or backbone.
        backbone (bool): Take nothing but the model's backbone. Defaults to False.

    Raises:
        ValueError: If models of this kind cannot be exported.
    """
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


def exportable(module: nn.Module | None) -> Any:
    """A re-parameterised copy in eval mode, without what keeps sizes from being free."""
    if module is None:
        return nn.Identity()
    module = reparameterize(copy.deepcopy(module)).cpu().float().eval()
    for parent in list(module.modules()):
        child: Any
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                parent._modules[name] = AdaptivePool(child.output_size)
            elif _is_mmseg_upsample(child):
                parent._modules[name] = nn.Upsample(
                    size=child.size,
                    scale_factor=child.scale_factor,
                    mode=child.mode,
                    align_corners=child.align_corners,
                )
    return module


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for which the size may be unknown.

    Args:
        output_size (int | tuple): As in ``nn.AdaptiveAvgPool2d``.
    """

    def __init__(self, output_size: Any):
        super().__init__()
        self.size = output_size if isinstance(output_size, tuple) else (output_size,) * 2

    def forward(self, x: Tensor) -> Tensor:
        if self.size == (1, 1):
            return x.mean((2, 3), keepdim=True)
        rows, columns = (
            _pool_weights(n, length, x) for n, length in zip(self.size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.T


def _pool_weights(bins: int, length: int, like: Tensor) -> Tensor:
    k = torch.arange(bins, device=like.device)[:, None]
    i = torch.arange(length, device=like.device)
    first = torch.div(k * length, bins, rounding_mode='floor')
    end = torch.div((k + 1) * length + bins - 1, bins, rounding_mode='floor')
    inside = torch.logical_and(i >= first, i < end).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _is_mmseg_upsample(module: Any) -> bool:
    # it makes whole numbers of sizes in Python, which ends up as a constant
    return type(module).__module__.startswith('mmseg.') and type(module).__name__ == 'Upsample'


def _wants_rgb(processor: nn.Module) -> bool:
    """Whether the network takes R, G, B: pictures are read as B, G, R in all three packages."""
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    return any(getattr(processor, name, False) for name in names)


def _size_divisor(processor: Any) -> int:
    test_cfg = getattr(processor, 'test_cfg', None) or {}
    if test_cfg.get('size'):
        raise ValueError(
            'data_preprocessor.test_cfg.size (padding to one size) cannot be exported: use '
            'size_divisor instead'
        )
    return int(test_cfg.get('size_divisor') or getattr(processor, 'pad_size_divisor', 1) or 1)
