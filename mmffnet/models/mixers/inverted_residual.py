"""The inverted residual of MobileNetV2 as a channel mixer."""

from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels, check_count
from ..layers import ConvNorm
from .build import build_act


@MODELS.register_module()
class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution and 1x1 projection, each with a norm.

    The hidden width is a multiple of 8, not more than a tenth below ``channels * expansion``.

    Args:
        channels (int): Channels in.
        expansion (int): Hidden channels per channel. Defaults to 2.
        out_channels (int, optional): Channels out. Defaults to None, which is ``channels``.
        stride (int): Stride of the depthwise convolution. Defaults to 1.
        dilation (int): Its dilation. Defaults to 1.
        residual (bool): Add the input to the output if their shapes are the same. Defaults to True,
            as in MobileNetV2; False in a block that adds it anyway.
        norm_cfg (dict, optional): The norms. Defaults to ``dict(type='BN')``.
        act_cfg (dict, optional): Activation behind the first two norms. Defaults to
            ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        expansion: int = 2,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        residual: bool = True,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_channels('InvertedResidual', channels)
        check_count('InvertedResidual: expansion', expansion)
        out_channels = out_channels or channels
        hidden = _multiple_of_8(channels * expansion)
        self.residual = residual and stride == 1 and channels == out_channels
        self.expand = ConvNorm(channels, hidden, 1, norm_cfg=norm_cfg)
        self.dwconv = ConvNorm(hidden, hidden, 3, stride, hidden, norm_cfg, dilation)
        self.project = ConvNorm(hidden, out_channels, 1, norm_cfg=norm_cfg)
        self.act = build_act(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.expand(x))
        y = self.project(self.act(self.dwconv(y)))
        return x + y if self.residual else y


def _multiple_of_8(width: int) -> int:
    """The nearest multiple of 8; the next one if that is more than a tenth below."""
    rounded = max(8, (width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
