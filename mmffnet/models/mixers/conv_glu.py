"""TransNeXt's channel mixer."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ..arch import check_channels, check_odd
from ..layers import DepthwiseConv2d
from .build import build_act


class PointwiseLinear(nn.Linear):
    """A linear layer at every position of ``(N, C, H, W)``: a 1x1 convolution.

    Its weight has two axes, as in the official files, and is initialised as a linear layer's.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


@MODELS.register_module()
class ConvGLU(nn.Module):
    """Convolutional gated linear unit: a depthwise convolution makes the gate.

    ``project(act(dwconv(a)) * b)``, where ``a`` and ``b`` are the halves of ``expand(x)``. With two
    thirds of the hidden channels it has about the parameters of a plain feed-forward network.

    Args:
        channels (int): Channels in and out.
        expansion (float): Hidden channels per channel, of which two thirds are left. Defaults to 4.
        kernel_size (int): Odd size of the depthwise kernel. Defaults to 3.
        act_cfg (dict, optional): Activation of the gate. Defaults to ``dict(type='GELU')``.
    """

    def __init__(
        self,
        channels: int,
        expansion: float = 4,
        kernel_size: int = 3,
        act_cfg: dict | None = None,
    ):
        super().__init__()
        check_channels('ConvGLU', channels)
        check_odd('ConvGLU: kernel_size', kernel_size)
        number = isinstance(expansion, int | float)
        hidden = int(2 * int(channels * expansion) / 3) if number else 0
        if hidden < 1:
            raise ValueError(f'ConvGLU: expansion leaves no hidden channel, got {expansion!r}')
        self.expand = PointwiseLinear(channels, 2 * hidden)
        self.dwconv = DepthwiseConv2d(hidden, hidden, kernel_size, padding=kernel_size // 2)
        self.act = build_act(act_cfg)
        self.project = PointwiseLinear(hidden, channels)

    def init_weights(self) -> None:
        """Initialises the depthwise kernel, whose fan-out is that of one channel."""
        taps = self.dwconv.weight[0].numel()
        nn.init.normal_(self.dwconv.weight, std=math.sqrt(2 / taps))

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.expand(x).chunk(2, 1)
        return self.project(self.act(self.dwconv(gate)) * x)
