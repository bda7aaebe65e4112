"""Convolutional additive attention as a token mixer.

Paper: CAS-ViT, https://arxiv.org/abs/2408.03703. Original implementation:
https://github.com/Tianfang-Zhang/CAS-ViT (MIT).
"""

from collections import OrderedDict

from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels
from ..layers import ConvNorm, DepthwiseConv2d, NormConv


class _Gates(nn.Module):
    """Weighs each position by a gate, then each channel."""

    def __init__(self, channels: int, norm_cfg: dict | None):
        super().__init__()
        dwconv = ConvNorm(channels, channels, 3, groups=channels, norm_cfg=norm_cfg, bias=True)
        gate = nn.Conv2d(channels, 1, 1, bias=False)
        self.spatial = nn.Sequential(OrderedDict(dwconv=dwconv, act=nn.ReLU(), gate=gate))
        self.channel = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.spatial(x).sigmoid()
        return x * self.channel(x.mean((2, 3), keepdim=True)).sigmoid()


@MODELS.register_module()
class AdditiveAttention(nn.Module):
    """CAS-ViT's token mixer: gated queries and keys are added, not multiplied.

    Queries and keys are each weighed by position and by channel; a depthwise convolution of their
    sum is the similarity, which the values are multiplied by. The cost grows linearly with the
    number of positions.

    Nothing in it normalises the product of the three, so the result grows with the cube of the
    input: in a block without norms (FFNet's) it needs one of its own.

    Args:
        channels (int): Channels in and out.
        norm (bool): Put a norm in front of it, which folds into the first convolution. Defaults to
            False.
        norm_cfg (dict, optional): The norms. Defaults to ``dict(type='BN')``.

    Example:
        >>> backbone = dict(
        ...     type='FFNet',
        ...     arch='nano',
        ...     token_mixer=[None, None, None, dict(type='AdditiveAttention', norm=True)],
        ... )
    """

    def __init__(self, channels: int, norm: bool = False, norm_cfg: dict | None = None):
        super().__init__()
        check_channels('AdditiveAttention', channels)
        self.qkv = (
            NormConv(channels, 3 * channels, norm_cfg=norm_cfg)
            if norm
            else nn.Conv2d(channels, 3 * channels, 1, bias=False)
        )
        self.query = _Gates(channels, norm_cfg)
        self.key = _Gates(channels, norm_cfg)
        self.similarity = DepthwiseConv2d(channels, channels, 3, padding=1)
        self.project = DepthwiseConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, 1)
        return self.project(self.similarity(self.query(query) + self.key(key)) * value)
