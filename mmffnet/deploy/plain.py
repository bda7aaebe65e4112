"""The base of exported modules, and copies of a model's parts that every format takes."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import reparameterize


class Plain(nn.Module):
    """Base of the modules that are exported; re-parameterised, in eval mode, on the CPU.

    Takes pictures as (N, 3, H, W) float32, R, G, B, 0 to 255. A model without a
    ``data_preprocessor``, which is a backbone, gets them as they are.
    """

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
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for which the size may be unknown."""

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
