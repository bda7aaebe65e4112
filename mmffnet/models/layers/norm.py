"""Layer norm over the channels of a feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS

#: Norm of the maps that the backbones hand to necks and heads
CHANNEL_LAYER_NORM = dict(type='mmffnet.ChannelLayerNorm', eps=1e-6)


@torch.fx.wrap  # a choice that a graph of torch.fx must make when it runs
def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """Returns ``y`` in the memory format of ``x``."""
    if x.is_contiguous():
        return y.contiguous()
    return y.contiguous(memory_format=torch.channels_last)


@MODELS.register_module()
class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels at every position of ``(N, C, H, W)``.

    The memory format of the input is kept: layer norm itself works channels-last, and would
    hand a map of another layout to the neck behind it.

    Args:
        channels (int): Number of channels.
        eps (float): Added to the variance. Defaults to 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).permute(0, 3, 1, 2)
        return in_format_of(x, y)
